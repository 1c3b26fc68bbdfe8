"""gen_guard: from the token ids of a conversation to a verdict."""

from qwen3guard_contract.wire import GEN_GUARD
from qwen3guard_runtime.gen.models import GenGuardModel
from qwen3guard_runtime.triton.admission import Admission
from qwen3guard_runtime.triton.loading import loading, model_folder, parameters
from qwen3guard_runtime.triton.refusal_log import RefusalLog
from qwen3guard_runtime.triton.request_reader import is_abandoned
from qwen3guard_runtime.triton.triton_io import publish, send, serve


class TritonPythonModel:
    @loading()
    def initialize(self, args):
        self.refusals = RefusalLog(GEN_GUARD)  # before the model is loaded, because it sets up logging
        self.model = GenGuardModel(model_folder(args), parameters(args))
        self.unpublish = publish([*self.model.metrics, self.refusals.metric])
        self.admission = Admission(
            self.answer, self.refuse, waiting=self.model.waiting, batch=self.model.slots, is_abandoned=is_abandoned
        )

    def execute(self, requests):
        for request in requests:
            self.admission.offer(request, request.timeout() / 1e6)

    def finalize(self):
        self.admission.close()
        self.unpublish()

    def answer(self, requests):
        send(requests, serve(requests, GEN_GUARD, self.model.handle, self.refusals))

    def refuse(self, request, error):
        send([request], serve([request], GEN_GUARD, lambda _: [error], self.refusals))
