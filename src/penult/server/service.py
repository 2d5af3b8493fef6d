"""The endpoints of a running server, by the names that clients send.

This module combines configuration, models and limits. It does not depend on routes.
"""

from dataclasses import dataclass

from penult.server.config import ConfigError, EndpointConfig, ServerConfig, public_name
from penult.server.errors import Refusal
from penult.server.metrics import Metrics
from penult.server.models import Models
from penult.server.requests import prompt_names


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint and its names.

    Attributes:
        config: configuration of the endpoint.
        model_id: name on the routes.
        names: further names that clients may send; the first is unique.
    """

    config: EndpointConfig
    model_id: str
    names: tuple[str, ...]


class Service:
    """The endpoints and their models, for all routes.

    Raises:
        ConfigError: two endpoints have the same name.
        FileNotFoundError: a model is missing.
        ValueError: a model does not support the settings of its endpoint.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.metrics = Metrics(shared=config.workers > 1)
        self.models = Models(config.limits, self.metrics, config.threads)
        self.endpoints: list[Endpoint] = []
        for endpoint in config.endpoints:
            self.add(endpoint)

    def add(self, config: EndpointConfig) -> Endpoint:
        """Add an endpoint, and open its model if `open_at_start` is set."""
        try:
            return self._add(config)
        except (OSError, TypeError, ValueError) as error:
            if not config.place:
                raise
            raise ConfigError(f"{config.place}: {error}") from error

    def _add(self, config: EndpointConfig) -> Endpoint:
        endpoint = self.named(config)
        if config.open_at_start:
            self.models.embedder(config)
        self.endpoints.append(endpoint)
        return endpoint

    def named(self, config: EndpointConfig) -> Endpoint:
        """Return an endpoint with its names, without adding it.

        Raises:
            ConfigError: another endpoint has the same name.
        """
        names = self.config.names_of(config, len(self.endpoints))
        in_use = {name for endpoint in self.endpoints for name in endpoint.names}
        if names and names[0] in in_use:
            raise ConfigError(f"The name {names[0]!r} belongs to another endpoint. Set another name.")
        model_id = config.model_id
        ids = {endpoint.model_id for endpoint in self.endpoints}
        if model_id in ids:  # the same model with other settings, or another model in a folder of the same name
            model_id = names[0] if names else config.model
            if model_id in ids:
                raise ConfigError(f"The model name {model_id!r} belongs to another endpoint. Set served_model_name.")
        return Endpoint(config, model_id, names)

    def find(self, model: str | None) -> Endpoint:
        """Return the endpoint of a name from a client; a single endpoint matches every name, unless names are strict.

        Raises:
            Refusal: no endpoint has that name.
        """
        if len(self.endpoints) == 1 and (model is None or not self.config.strict_model_name):
            return self.endpoints[0]
        # All model ids first, so that they override names and models of other endpoints.
        for match in (
            next((one for one in self.endpoints if model == one.model_id), None),
            next((one for one in self.endpoints if model in one.names), None),
            next((one for one in self.endpoints if model == one.config.model), None),
            next((one for one in self.endpoints if model == public_name(one.config.model)), None),
        ):
            if match is not None:
                return match
        names = ", ".join(endpoint.model_id for endpoint in self.endpoints)
        subject = "`model` is missing" if model is None else f"The model {model[:100]!r} is not served"
        raise Refusal("missing", f"{subject}. Set `model` to one of: {names}.", param="model")

    @property
    def dimension(self) -> int | None:
        """The largest D of the open models. None: no model is open."""
        return max(self.models.dimensions, default=None)

    @property
    def prompt_names(self) -> list[str]:
        """The allowed values of `prompt_name` for the open models."""
        return prompt_names(*self.models.recipes)

    @property
    def first(self) -> Endpoint:
        """The endpoint of requests without a model name."""
        if not self.endpoints:
            raise Refusal("missing", "This server has no endpoint. Add one with POST /endpoints.")
        return self.endpoints[0]
