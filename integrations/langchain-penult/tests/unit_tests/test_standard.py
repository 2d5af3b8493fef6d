"""LangChain's own tests for an embeddings class, all of them offline."""

import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_penult import PenultEmbeddings


class _WithTinyModel:
    @pytest.fixture(autouse=True)
    def _folder(self, tiny):
        self.folder = tiny

    @property
    def embeddings_class(self):
        return PenultEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": str(self.folder), "threads": 1}


class TestPenultEmbeddingsUnit(_WithTinyModel, EmbeddingsUnitTests):
    pass


class TestPenultEmbeddingsIntegration(_WithTinyModel, EmbeddingsIntegrationTests):
    pass
