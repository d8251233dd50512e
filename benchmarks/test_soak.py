"""10,000 queries from 8 threads with an audit log: the memory stays flat, and the log has no fault.

skinret demo --out demo
python -m pytest benchmarks/test_soak.py --product demo --soak 10000 -s
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import psutil
import pytest
from fixtures import Product

from skinret_infer import Searcher
from skinret_infer.trust.audit import verify

THREADS = 8
STEP = 1000  # queries from one look at the memory to the next
FLAT = 0.03  # the most by which the memory may grow


def test_ten_thousand_queries_from_eight_threads(
    product: Product, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    queries = request.config.getoption("--soak")
    if not queries:
        pytest.skip("runs only with --soak 10000")
    log, number, resident = tmp_path / "audit.jsonl", count(), [0.0] * (queries // STEP)
    lock, process = threading.Lock(), psutil.Process()
    with Searcher(product.bundle, product.archive, audit=log) as searcher:

        def query(_: int) -> None:
            while (n := next(number)) < queries:
                case = product.cases[n % len(product.cases)]
                words = searcher.manifest.checklist.text_of(case.attributes) if n % 3 else None
                results = searcher.query(
                    case.image,
                    words and f"{words}, {n % 500} mm",  # more texts than the cache of texts holds
                    k=1 + n % 20,
                    where={"sex": "female"} if n % 5 == 0 else None,
                    exclude=[case.case_id],
                    context={"query": n},
                )
                assert len(results) == 1 + n % 20
                if n % 50 == 0:
                    assert results[0].evidence(image_folder=product.images).case
                if n % STEP == STEP - 1:
                    with lock:
                        resident[n // STEP] = process.memory_info().rss / 1e6

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(query, range(THREADS)))
        engine = f"{searcher.runtime} {searcher.precision}"
    verified = verify(log)
    print(f"\n{queries} queries from {THREADS} threads on {engine}; {verified}")
    print("resident memory after each thousand, MB:", " ".join(f"{mb:.0f}" for mb in resident))
    assert verified.records == queries and not verified.faults
    settled = resident[1:]  # the first thousand fills the caches: threads, requests, texts
    assert max(settled) / settled[0] - 1 <= FLAT
