"""The pages /docs and /redoc, which work without the internet: their scripts come from an installed package.

`fastapi-offline` ships the scripts of Swagger UI and Redoc. Only its files are used; its code is not imported.
"""

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from penult.extras import install_hint

_ASSETS = "/docs-assets"


def add(app: FastAPI) -> None:
    """Add the documentation pages to an application.

    Raises:
        ModuleNotFoundError: the package fastapi-offline is not installed.
    """
    package = find_spec("fastapi_offline")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(f"The package fastapi-offline is not installed. Install {install_hint('server')}.")
    app.mount(_ASSETS, StaticFiles(directory=Path(package.origin).parent / "static"), name="docs-assets")

    async def swagger(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title=f"{app.title} - Swagger UI",
            swagger_js_url=f"{root}{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{_ASSETS}/favicon.png",
        )

    async def redoc(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "").rstrip("/")
        return get_redoc_html(
            openapi_url=f"{root}/openapi.json",
            title=f"{app.title} - ReDoc",
            redoc_js_url=f"{root}{_ASSETS}/redoc.standalone.js",
            redoc_favicon_url=f"{root}{_ASSETS}/favicon.png",
            with_google_fonts=False,
        )

    async def front() -> RedirectResponse:
        return RedirectResponse("/docs")

    app.add_api_route("/docs", swagger, include_in_schema=False)
    app.add_api_route("/redoc", redoc, include_in_schema=False)
    app.add_api_route("/", front, include_in_schema=False)
