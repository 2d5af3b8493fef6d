"""The endpoints of a running server, by the names that clients know them by.

It knows configurations, models and limits; it knows no routes.
"""

from dataclasses import dataclass

from penult.deepsparse.arguments import TASK
from penult.deepsparse.config_file import DeepSparseEndpoint, extend
from penult.server.config import ConfigError, ServerConfig
from penult.server.errors import Refusal
from penult.server.metrics import Metrics
from penult.server.models import Models
from penult.server.requests import prompt_names


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint and its names.

    Attributes:
        config: what it was made from.
        name: DeepSparse's name of it, in /v2/models/NAME/infer.
        aliases: further names that lead to it.
        model_id: its name on the OpenAI routes.
    """

    config: DeepSparseEndpoint
    name: str
    aliases: tuple[str, ...]
    model_id: str


class Service:
    """What the routes answer from.

    Raises:
        ConfigError: two endpoints would have one name.
        FileNotFoundError: a model is not there.
        ValueError: a model cannot be used as its endpoint says.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = extend(config)
        self.metrics = Metrics()
        self.models = Models(config.limits, self.metrics, config.threads)
        self.endpoints: list[Endpoint] = []
        for endpoint in self.config.endpoints:
            self.add(endpoint, alone=len(config.endpoints) == 1)

    def add(self, config: DeepSparseEndpoint, *, alone: bool = False) -> Endpoint:
        """Open an endpoint: the face of the routes it was written for, now; the other one, when it is first asked for."""
        try:
            return self._open(config, alone=alone)
        except (OSError, TypeError, ValueError) as error:
            if not config.place:
                raise
            raise ConfigError(f"{config.place}: {error}") from error

    def _open(self, config: DeepSparseEndpoint, *, alone: bool) -> Endpoint:
        number = len(self.endpoints)
        route = (config.route or "").strip("/")
        name = route or config.name or f"{TASK}-{number}"
        # DeepSparse called its only endpoint by the task alone when it came from the command line, and with a number
        # when it came from a file; clients of either go on working.
        unnamed = not route and config.name in (None, TASK)
        aliases = (TASK, f"{TASK}-{number}") if alone and unnamed else ()
        taken = {taken for endpoint in self.endpoints for taken in (endpoint.name, *endpoint.aliases)}
        if name in taken:
            raise ConfigError(f"An endpoint is named {name!r} already; give this one another name.")
        if set("{}?#%") & set(name):
            raise ConfigError(f"The endpoint's name {name!r} cannot stand in a path; leave out the signs {{ }} ? # %.")
        model_id = config.model if config.name in (None, TASK) else config.name
        if model_id in {endpoint.model_id for endpoint in self.endpoints}:  # the same model, served in another way
            model_id = name
        if config.open_at_start:
            self.models.embedder(config)
        else:
            self.models.pipeline(config)
        endpoint = Endpoint(config, name, tuple(alias for alias in aliases if alias != name), str(model_id))
        self.endpoints.append(endpoint)
        return endpoint

    def find(self, model: str | None) -> Endpoint:
        """Find the endpoint that a client names; where there is only one, any name means it.

        Raises:
            Refusal: none of several has that name.
        """
        if len(self.endpoints) == 1:
            return self.endpoints[0]
        known = [(one.model_id, one.name, one.config.model) for one in self.endpoints]
        for way in zip(*known, strict=True):  # all ids first, so that another's model does not stand before them
            if model in way:
                return self.endpoints[way.index(model)]
        for endpoint in self.endpoints:
            if model in endpoint.config.aliases:
                return endpoint
        names = ", ".join(endpoint.model_id for endpoint in self.endpoints)
        what = "No model is named" if model is None else f"The model {model[:100]!r} is not served"
        raise Refusal("missing", f"{what}; `model` must be one of {names}.", param="model")

    @property
    def dimension(self) -> int | None:
        """The most values of a vector of any model that is open; None where none is."""
        return max(self.models.dimensions, default=None)

    @property
    def prompt_names(self) -> list[str]:
        """What `prompt_name` may be, of all models that are open for the routes that take it."""
        return prompt_names(*self.models.recipes)

    @property
    def first(self) -> Endpoint:
        """The endpoint of routes that name none."""
        if not self.endpoints:
            raise Refusal("missing", "No endpoint is left on this server; POST one to /endpoints.")
        return self.endpoints[0]
