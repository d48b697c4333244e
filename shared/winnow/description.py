"""The page that describes a service's API, for a browser: /docs, of files that the service itself holds.

Hospitals' networks reach no outside world, and a page that takes API keys had better run nobody else's scripts.
"""

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

PAGE = "/docs"


def add_page(app: FastAPI) -> None:
    """Serve the page in place of FastAPI's own, which takes its scripts from elsewhere: `docs_url` is None.

    Its links are relative, so that it works behind a proxy that adds a prefix or TLS.
    """

    @app.get(PAGE, tags=["description"], include_in_schema=False)
    async def show() -> HTMLResponse:
        return get_swagger_ui_html(
            title=app.title,
            openapi_url="openapi.json",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon-32x32.png",
            oauth2_redirect_url=None,
        )

    app.mount(PAGE, StaticFiles(packages=[("fastapi_swagger", "resources")]))
