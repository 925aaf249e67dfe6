"""ModelService: the model, the server's limits and load, and the tokenizer."""

from collections.abc import Sequence

import torch

from saegis.v1 import model_pb2 as pb
from saegis.v1 import model_pb2_grpc
from saegis.version import __version__
from saegis_server.engine.api import MAX_LOGPROBS, FieldError
from saegis_server.engine.pictures import Shown
from saegis_server.rpc.auth.roles import Role, needs, serves
from saegis_server.rpc.server.intake import MOST_FIELDS
from saegis_server.rpc.services.shared import Context, Servicer
from saegis_server.rpc.wire import convert
from saegis_server.rpc.wire.prompts import MOST_MESSAGES, check_text
from saegis_server.rpc.wire.sampling import LARGEST_N, MOST_BIASES, MOST_STOP_TOKENS
from saegis_server.sae.catalog import LoadedSAE


@serves(pb.DESCRIPTOR.services_by_name["ModelService"])
class ModelServicer(Servicer, model_pb2_grpc.ModelServiceServicer):
    """Describes the model and the server."""

    @needs(Role.USE)
    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """The model, its sites and SAEs."""
        model, engine, targets = self.services.model, self.services.engine, self.services.targets
        return convert.message(
            pb.GetModelResponse,
            model,
            id=model.name,
            max_context_length=engine.max_length,
            has_chat_template=self.services.prompts.has_chat_template,
            sees_pictures=self.services.pictures.most > 0,
            sites=[
                pb.Site(name=str(site), layer=site.layer, width=targets.widths.at(site))
                for site in targets.sites
            ],
            saes=[_sae(loaded) for loaded in self.services.catalog.entries],
        )

    @needs(Role.USE)
    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        """Versions, device and limits."""
        engine, load = self.services.engine, self.services.engine.stats()
        capacity, pictures = engine.capacity, self.services.pictures
        message = pb.GetServerInfoResponse(
            version=__version__,
            execution_mode=pb.EXECUTION_MODE_COMPILED if engine.compiled else pb.EXECUTION_MODE_EAGER,
            torch_version=torch.__version__,
            device=self.services.model.device,
            limits=pb.Limits(
                max_n=LARGEST_N,
                max_edits_per_site=capacity.edits,
                max_bans_per_site=capacity.bans,
                max_watches_per_site=capacity.watches,
                max_queue=load.queue_limit,
                max_num_seqs=load.max_running,
                max_logprobs=MAX_LOGPROBS,
                max_message_bytes=self.services.max_message_bytes,
                max_logit_bias=MOST_BIASES,
                max_stop_token_ids=MOST_STOP_TOKENS,
                max_messages=MOST_MESSAGES,
                max_text_characters=self.services.longest_text,
                max_fields=MOST_FIELDS,
                max_pictures=pictures.most,
                max_picture_bytes=pictures.limits.size,
                max_picture_pixels=pictures.limits.pixels,
                max_picture_side=pictures.limits.side,
            ),
        )
        message.start_time.FromNanoseconds(int(self.services.started * 1e9))
        return message

    @needs(Role.OPERATE)
    async def GetLoad(self, request: pb.GetLoadRequest, context: Context) -> pb.GetLoadResponse:
        """How busy the engine is."""
        load = self.services.engine.stats()
        return pb.GetLoadResponse(
            num_running_reqs=load.running,
            num_waiting_reqs=load.waiting,
            num_used_tokens=load.used_tokens,
            max_total_num_tokens=load.max_total_tokens,
            token_usage=load.used_tokens / load.max_total_tokens,
            gen_throughput=load.tokens_per_second,
            max_running_requests=load.max_running,
        )

    @needs(Role.USE, large=True)
    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """A text's or a conversation's token ids; an empty text has none."""
        check_text(request, request.WhichOneof("input"), self.services.engine.max_length)
        looked = await self.services.pictures.look(request.chat, "chat")
        return await self.services.in_thread(self._tokenize, request, [each.shown for each in looked])

    def _tokenize(self, request: pb.TokenizeRequest, shown: Sequence[Shown]) -> pb.TokenizeResponse:
        prompts = self.services.prompts
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        match request.WhichOneof("input"):
            case "text":
                tokens = prompts.text(request.text, special)
            case "chat":
                if request.HasField("add_special_tokens"):
                    raise FieldError("add_special_tokens", "is for text only")
                tokens = prompts.see_chat(request.chat, "chat", True, shown).tokens
            case _:
                raise FieldError("text", "one of text and chat must be given")
        return pb.TokenizeResponse(token_ids=tokens, tokens=prompts.pieces(tokens))

    @needs(Role.USE, large=True)
    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        """The text of token ids."""
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        most = self.services.longest_text
        if len(request.token_ids) > most:
            raise FieldError("token_ids", f"at most {most} tokens, not {len(request.token_ids)}")
        tokens = tuple(request.token_ids)
        return pb.DetokenizeResponse(
            text=await self.services.in_thread(self.services.prompts.decode, tokens, skip)
        )


def _sae(loaded: LoadedSAE) -> pb.Sae:
    sae, measured = loaded.sae, loaded.measured
    return pb.Sae(
        id=loaded.id,
        digest=sae.digest,
        site=str(loaded.site),
        width=sae.width,
        feature_count=sae.features,
        architecture=sae.activation,
        fvu=measured.fvu if measured else None,
        l0=measured.l0 if measured else None,
        labelled_count=len(loaded.labels),
    )
