import numpy as np
from krea_data.rows import Result, Row
from krea_data.sae.model import encode_all
from krea_data.sae.names import name_features
from krea_data.sae.training import Config, train
from krea_data.tasks.tags import Tags
from krea_data.vectors import packed


def test_tags_are_the_dominant_named_features() -> None:
    """Vectors along one of three directions, labelled by it."""
    draw = np.random.default_rng(5)
    groups = draw.integers(0, 3, 600)
    vectors = (4 * np.eye(3, 8)[groups] + 0.05 * draw.normal(size=(600, 8))).astype(np.float32)
    labels = [[("cat", "boat", "star")[group], "thing"] for group in groups]
    model = train(vectors, Config(latents=12, k=1, steps=300, batch=128, learning_rate=1e-2, dead_after=1000)).model
    features = name_features(encode_all(model, vectors), labels, lift=2.0)
    task = Tags(model=model, features=features, version="v1")
    rows = [
        Row(id=f"r{n}", blob="0", results={"embed": Result(value={"model": "m", "vector": packed(vectors[n])})})
        for n in range(60)
    ]
    results = task([*rows, Row(id="none", blob="0")])
    assert len(results) == 61
    right = sum(result.value.get("first") == labels[n][0] for n, result in enumerate(results[:60]))
    assert right >= 55
    assert results[-1].value == {"tags": [], "version": "v1"}
    assert all(result.drop is None for result in results)
    alone = [task([row])[0] for row in rows]
    assert [one.value["tags"] for one in alone] == [one.value["tags"] for one in results[:60]]
