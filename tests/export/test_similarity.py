"""Semantic similarity through a sentence encoder made on the spot. Needs the extra similarity: `make test-export`."""
import pytest
import torch

from finetune_lib.core import ConfigError
from finetune_lib.evaluation.metrics import similarity
from finetune_lib.evaluation.tasks import Prediction, mean_scores

pytest.importorskip("sentence_transformers", reason="sentence_transformers is not installed: make test-export")
WORDS = "an owl in the elm pony hut river stone".split()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """(folder of a tiny random sentence encoder, the encoder itself)."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=5 + len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, initializer_range=0.5)).save_pretrained(folder / "words")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "words")
    part = Transformer(str(folder / "words"))
    made = SentenceTransformer(modules=[part, Pooling(part.get_embedding_dimension())], device="cpu")
    made.save(str(folder / "whole"))
    return folder / "whole", made.eval()


def test_it_is_the_cosine_of_the_encoders_own_vectors(encoder):
    folder, made = encoder
    metric = similarity(folder)
    for pair in (("an owl in the elm", "the pony"), ("river stone", "stone river"), ("", "owl")):
        one, other = made.encode(list(pair), convert_to_tensor=True, show_progress_bar=False)
        assert metric(*pair) == pytest.approx(torch.cosine_similarity(one, other, dim=0).item(), abs=1e-5)


def test_the_same_text_is_1_and_other_texts_are_less(encoder):
    metric = similarity(encoder[0])
    assert metric("an owl in the elm", "an owl in the elm") == pytest.approx(1.0, abs=1e-5)
    assert metric("an owl in the elm", "river stone") == metric("river stone", "an owl in the elm") < 0.999


def test_it_is_a_metric_of_an_evaluation(encoder):
    metric = similarity(encoder[0])
    said = [Prediction("q", "a", "?", "an owl", text, True, {"similarity": metric(text, "an owl")})
            for text in ("an owl", "the pony")]
    assert mean_scores(said)["similarity"] == pytest.approx((1 + said[1].scores["similarity"]) / 2, abs=1e-5)


def test_a_name_of_the_hub_is_refused_and_nothing_is_downloaded(tmp_path):
    for folder in ("sentence-transformers/all-MiniLM-L6-v2", tmp_path):
        with pytest.raises(ConfigError, match="must be a folder with a config.json"):
            similarity(folder)
