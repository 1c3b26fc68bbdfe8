"""guard_tokenizer: from a conversation to token ids, by the checkpoint's chat template."""

from qwen3guard_contract.wire import GUARD_TOKENIZER
from qwen3guard_runtime.gen.models import GuardTokenizerModel
from qwen3guard_runtime.parameters import Parameters
from qwen3guard_runtime.triton.admission import Admission
from qwen3guard_runtime.triton.loading import loading, model_folder, parameters
from qwen3guard_runtime.triton.refusal_log import RefusalLog
from qwen3guard_runtime.triton.request_reader import is_abandoned, waits_s
from qwen3guard_runtime.triton.triton_io import publish, send, serve


class TritonPythonModel:
    @loading()
    def initialize(self, args):
        self.refusals = RefusalLog(GUARD_TOKENIZER)  # before the model is loaded, because it sets up logging
        stated = parameters(args)
        self.model = GuardTokenizerModel(model_folder(args), stated)
        self.unpublish = publish([self.refusals.metric])
        waiting = Parameters(stated).whole("waiting")
        self.admission = Admission(self.answer, self.refuse, waiting=waiting, is_abandoned=is_abandoned)

    def execute(self, requests):
        for request in requests:
            self.admission.offer(request, waits_s(request))

    def finalize(self):
        self.admission.close()
        self.unpublish()

    def answer(self, requests):
        send(requests, serve(requests, GUARD_TOKENIZER, self.model.handle, self.refusals))

    def refuse(self, request, error):
        send([request], serve([request], GUARD_TOKENIZER, lambda _: [error], self.refusals))
