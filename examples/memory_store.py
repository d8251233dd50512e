"""A Store of your own: cases in memory, without filters. The test of this file is one call of check_store."""

import hashlib
import threading

import numpy as np

from skinret_infer import ArchiveError, InputError, Layout, Match, Record, SearchResult


class MemoryStore:
    """Cases in a dictionary, for one layout. They are gone when the program ends."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.lock, self.open = layout, threading.Lock(), True
        self.cases: dict[str, tuple[Record, np.ndarray]] = {}
        self.state = ""

    def __len__(self) -> int:
        return len(self.cases)

    def case_ids(self):
        return sorted(self.cases)

    def get(self, case_ids):
        return {case_id: record for case_id, (record, _) in self.get_with_descriptors(case_ids).items()}

    def get_with_descriptors(self, case_ids):
        with self.lock:
            return {case_id: self.cases[case_id] for case_id in case_ids if case_id in self.cases}

    def write(self, records, descriptors):
        self.layout.check(descriptors, len(records))
        with self.lock:
            for record, descriptor in zip(records, descriptors, strict=True):
                self._change(record.case_id, (record, descriptor.copy()))

    def update(self, record):
        with self.lock:
            if record.case_id not in self.cases:
                return False
            self._change(record.case_id, (record, self.cases[record.case_id][1]))
            return True

    def remove(self, case_ids):
        with self.lock:
            known = [case_id for case_id in set(case_ids) if case_id in self.cases]
            for case_id in known:
                self._change(case_id, None)
            return len(known)

    def search(self, queries, weights, k, where=None, exclude=()):
        if where:
            raise InputError("this store has no filters", code="filter-type", cure="leave `where` out")
        with self.lock:
            cases = [case for case_id, case in sorted(self.cases.items()) if case_id not in set(exclude)]
            state = self.state
        if not self.cases:
            raise ArchiveError("the store is empty", code="archive-empty", cure="add cases")
        return SearchResult([self._best(query, cases, weights, k) for query in queries], len(cases), state)

    def check_open(self):
        if not self.open:
            raise ArchiveError("the store was closed", code="archive-closed", cure="open another")

    def close(self):
        self.open = False

    def _best(self, query, cases, weights, k):
        """Return the k best of all cases, equal scores by case id, for the sort keeps their order."""
        matches = []
        for record, descriptor in cases:
            terms = query.astype(np.float64) * descriptor.astype(np.float64)
            products = np.add.reduceat(terms, self.layout.starts)
            matches.append(Match(record, float(products @ weights), products))
        return sorted(matches, key=lambda match: -match.score)[:k]

    def _change(self, case_id, case):
        """Set or remove a case, and name the new state by the hash of the old one and of the change."""
        if case is None:
            del self.cases[case_id]
        else:
            self.cases[case_id] = case
        facts = repr((self.state, case_id, case and (case[0].row(), case[1].tobytes())))
        self.state = hashlib.sha256(facts.encode()).hexdigest()
