"""A term that breaks a run."""

from tests.train import tiny


class Broken:
    """The term of facts, of which a step's sum is not finite."""

    def __init__(self, *, value: float, step: int) -> None:
        self.inner = tiny.facts_term()
        self.name, self.stream, self.weight = "facts", "facts", 1.0
        self.value = value
        self.step = step
        self.calls = 0

    def check(self, model) -> None:
        """Any model will do."""

    def weights(self, model):
        return self.inner.weights(model)

    def counts(self, model, batch):
        return self.inner.counts(model, batch)

    def totals(self, model, batch):
        self.calls += 1
        totals = self.inner.totals(model, batch)
        return totals * self.value if self.calls == self.step else totals
