"""The endpoints of a running server, by the names that clients know them by.

It knows configurations, models and limits; it knows no routes.
"""

from dataclasses import dataclass

from penult.server.config import ConfigError, EndpointConfig, ServerConfig
from penult.server.errors import Refusal
from penult.server.metrics import Metrics
from penult.server.models import Models
from penult.server.requests import prompt_names


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint and its names.

    Attributes:
        config: what it was made from.
        model_id: its name on the routes.
        names: further names that clients may send; the first is no other endpoint's.
    """

    config: EndpointConfig
    model_id: str
    names: tuple[str, ...]


class Service:
    """What the routes answer from.

    Raises:
        ConfigError: two endpoints would have one name.
        FileNotFoundError: a model is not there.
        ValueError: a model cannot be used as its endpoint says.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.models = Models(config.limits, self.metrics, config.threads)
        self.endpoints: list[Endpoint] = []
        for endpoint in config.endpoints:
            self.add(endpoint)

    def add(self, config: EndpointConfig) -> Endpoint:
        """Add an endpoint, and open its model where the configuration does not put that off."""
        try:
            return self._add(config)
        except (OSError, TypeError, ValueError) as error:
            if not config.place:
                raise
            raise ConfigError(f"{config.place}: {error}") from error

    def _add(self, config: EndpointConfig) -> Endpoint:
        names = self.config.names_of(config, len(self.endpoints))
        taken = {name for endpoint in self.endpoints for name in endpoint.names}
        if names and names[0] in taken:
            raise ConfigError(f"An endpoint is named {names[0]!r} already; give this one another name.")
        model_id = config.model_id
        if model_id in {endpoint.model_id for endpoint in self.endpoints}:  # the same model, served in another way
            if not names:
                raise ConfigError(f"An endpoint is named {model_id!r} already; give this one a name.")
            model_id = names[0]
        if config.open_at_start:
            self.models.embedder(config)
        endpoint = Endpoint(config, model_id, names)
        self.endpoints.append(endpoint)
        return endpoint

    def find(self, model: str | None) -> Endpoint:
        """Find the endpoint that a client names; where there is only one, any name means it.

        Raises:
            Refusal: none of several has that name.
        """
        if len(self.endpoints) == 1:
            return self.endpoints[0]
        # All ids first, so that another endpoint's model does not stand before them.
        for match in (
            next((one for one in self.endpoints if model == one.model_id), None),
            next((one for one in self.endpoints if model in one.names), None),
            next((one for one in self.endpoints if model == one.config.model), None),
        ):
            if match is not None:
                return match
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
