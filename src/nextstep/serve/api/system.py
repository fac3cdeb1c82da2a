"""What operators ask: models, health, readiness, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from nextstep.serve.api import schema as s
from nextstep.serve.api.service import Service, service_of
from nextstep.serve.jobs import backend as b
from nextstep.serve.problems import not_found, stopping
from nextstep.version import __version__

router = APIRouter()


@router.get("/v1/models", response_model=s.ModelList, tags=["OpenAI"])
async def models(request: Request) -> Any:
    """The served model."""
    return {"object": "list", "data": [_card(service_of(request))]}


@router.get("/v1/models/{model}", response_model=s.ModelCard, tags=["OpenAI"])
async def model(request: Request, model: str = Path(max_length=200)) -> Any:
    """One model by its name."""
    service = service_of(request)
    service.check_model(model)
    return _card(service)


@router.get(
    "/v1/models/{model}/vocabulary.webp",
    response_class=Response,
    responses={200: {"content": {"image/webp": {"schema": {"type": "string"}}}}},
    tags=["Operation"],
)
async def words(request: Request, model: str = Path(max_length=200)) -> Response:
    """Pictures of what the model draws by name, in the order of its card."""
    service = service_of(request)
    service.check_model(model)
    own = service.facts.vocabulary
    if own is None or own.sheet is None:
        raise not_found("this model has no list of what it draws")
    return Response(own.sheet.webp, media_type="image/webp")


@router.get("/health", response_model=s.Health, tags=["Operation"])
async def health() -> Any:
    """The process answers."""
    return {"status": "ok", "version": __version__}


@router.get("/ready", response_model=s.Health, tags=["Operation"])
async def ready(request: Request) -> Any:
    """Jobs are taken; 503 or 507 while the service stops or its disk is full."""
    jobs = service_of(request).jobs
    if not jobs.ready:
        raise stopping()
    jobs.store.check_usable()
    return {"status": "ready", "version": __version__}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    tags=["Operation"],
)
async def metrics(request: Request) -> Any:
    """Figures in Prometheus' text format."""
    text = service_of(request).jobs.metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4")


def _card(service: Service) -> dict[str, Any]:
    facts = service.facts
    return {
        "id": facts.name,
        "object": "model",
        "created": service.begun,
        "owned_by": "open-nextstep",
        "height": facts.height,
        "width": facts.width,
        "sizes": str(facts.sizes),
        "token_pixels": facts.sizes.token_pixels,
        "hash": facts.hash,
        "defaults": facts.defaults,
        "most_side": facts.sizes.most_side,
        "most_pixels": facts.sizes.most_pixels,
        "most_steps": service.limits.steps,
        "runtime": facts.runtime,
        "adapter": facts.adapter,
        "vocabulary": _words(facts),
    }


def _words(facts: b.ModelFacts) -> dict[str, Any] | None:
    """What the model draws by name, without every word of its training."""
    if facts.vocabulary is None:
        return None
    told = facts.vocabulary.to_dict()
    del told["words"]
    if told["sheet"]:
        told["sheet"]["url"] = f"/v1/models/{facts.name}/vocabulary.webp"
    return told
