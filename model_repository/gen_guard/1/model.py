"""gen_guard: token ids to a verdict."""

from qwen3guard_client.wire import GEN_GUARD
from qwen3guard_runtime.gen_models import GenGuardModel
from qwen3guard_runtime.triton_io import counter, model_folder, parameters, serve


class TritonPythonModel:
    def initialize(self, args):
        self.model = GenGuardModel(model_folder(args), parameters(args), counter)

    def execute(self, requests):
        return serve(requests, GEN_GUARD, self.model.handle)
