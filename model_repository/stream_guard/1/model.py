"""stream_guard: from a step's token ids at a position to the verdict of each token. It holds the sessions."""

from qwen3guard_contract.wire import STREAM_GUARD
from qwen3guard_runtime.stream.models import StreamGuardModel
from qwen3guard_runtime.triton.loading import loading, model_folder, parameters
from qwen3guard_runtime.triton.refusal_log import RefusalLog
from qwen3guard_runtime.triton.triton_io import publish, serve


class TritonPythonModel:
    @loading()
    def initialize(self, args):
        self.refusals = RefusalLog(STREAM_GUARD)  # before the model is loaded, because it sets up logging
        self.model = StreamGuardModel(model_folder(args), parameters(args))
        self.unpublish = publish([*self.model.metrics, self.refusals.metric])

    def execute(self, requests):
        return serve(requests, STREAM_GUARD, self.model.handle, self.refusals, self.model.refuse)

    def finalize(self):
        self.unpublish()
