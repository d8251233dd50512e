"""A query service. Run `uvicorn --factory service:create`; it needs fastapi, python-multipart and uvicorn.

SKINRET_BUNDLE and SKINRET_ARCHIVE name the bundle and the archive. It has neither authentication nor TLS: put
it behind a proxy that has both.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Form, HTTPException, UploadFile
from fastapi.concurrency import run_in_threadpool

from skinret_infer import Searcher, SkinretError


def create() -> FastAPI:
    searcher = Searcher(os.environ["SKINRET_BUNDLE"], os.environ["SKINRET_ARCHIVE"])

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(searcher.warmup)
        yield
        searcher.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/query")
    async def query(
        image: UploadFile, text: Annotated[str, Form()] = "", k: Annotated[int, Form()] = 10
    ) -> dict[str, Any]:
        data = await image.read()
        try:  # a Searcher is safe in threads; the event loop stays free
            results = await run_in_threadpool(searcher.query, data, text, k=k)
        except SkinretError as error:
            raise HTTPException(422, error.to_dict()) from None
        return results.to_dict()

    return app
