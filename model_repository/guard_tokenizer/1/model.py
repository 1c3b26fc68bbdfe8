"""guard_tokenizer: a conversation, through the checkpoint's chat template, to token ids."""

from qwen3guard_client.wire import GUARD_TOKENIZER
from qwen3guard_runtime.gen_models import GuardTokenizerModel
from qwen3guard_runtime.triton_io import model_folder, serve


class TritonPythonModel:
    def initialize(self, args):
        self.model = GuardTokenizerModel(model_folder(args))

    def execute(self, requests):
        return serve(requests, GUARD_TOKENIZER, self.model.handle)
