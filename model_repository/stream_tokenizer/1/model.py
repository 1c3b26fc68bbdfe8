"""stream_tokenizer: from a step's conversation and text to token ids. It holds no state."""

from qwen3guard_contract.wire import STREAM_TOKENIZER
from qwen3guard_runtime.stream.models import StreamTokenizerModel
from qwen3guard_runtime.triton.loading import loading, model_folder, parameters
from qwen3guard_runtime.triton.refusal_log import RefusalLog
from qwen3guard_runtime.triton.triton_io import publish, serve


class TritonPythonModel:
    @loading()
    def initialize(self, args):
        self.refusals = RefusalLog(STREAM_TOKENIZER)  # before the model is loaded, because it sets up logging
        self.model = StreamTokenizerModel(model_folder(args), parameters(args))
        self.unpublish = publish([self.refusals.metric])

    def execute(self, requests):
        return serve(requests, STREAM_TOKENIZER, self.model.handle, self.refusals, self.model.refuse)

    def finalize(self):
        self.unpublish()
