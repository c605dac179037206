"""python -m kittygen.evaluate: what it scores is what the model says, through the cache that it names."""

import contextlib
import io
import json
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path

import torch
from common import DEVICE, build, tiny, tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from kittygen import evaluate, evaluate_chart, evaluate_needle, evaluate_score
from kittygen import models as loading
from kittygen.report import CommandError, merge_rows, number

logging.disable_progress_bar()
TEXT = " ".join(f"word{(i * i + 7 * i) % 83}" for i in range(900))


def word_tokenizer(bos=None):
    """A token for every word of the text, of the needle and of its question."""
    split = pre_tokenizers.Whitespace()
    texts = [TEXT, " ".join(evaluate_needle.POOL), *evaluate_needle.NEEDLE, evaluate_needle.QUESTION]
    words = ["<pad>", "<s>", "</s>", "<unk>"] + sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token=bos)


def windows_of(count, window, prompt):
    return evaluate_score.Windows(tokens(count, window + 1), prompt)


class Refusals(unittest.TestCase):
    def refused(self, *needles):
        return self.assertRaisesRegex(CommandError, ".*".join(needles))


class Cutting(Refusals):
    def test_every_token_is_scored_once(self):
        ids = list(range(1000, 1500))
        for first in ([], [1]):
            windows = evaluate_score.cut(ids, first, 64, 20)
            targets = windows.ids[:, windows.prompt + 1 :].flatten().tolist()
            self.assertEqual(targets, list(range(targets[0], targets[-1] + 1)))
            self.assertEqual(targets[0], 1000 + 21 - len(first))
            self.assertGreater(targets[-1], 1500 - 44 - 1)
            self.assertEqual(windows.ids[:, : len(first)].flatten().tolist(), first * len(windows.ids))
        self.assertEqual(len(evaluate_score.cut(ids, [], 64, 20, tokens=45).ids), 2)

    def test_what_cannot_be_cut(self):
        ids = list(range(100))
        with self.refused("--tokens: the text gives 44 .* 60 asked for"):
            evaluate_score.cut(ids, [], 64, 20, tokens=60)
        with self.refused("--text: 100 tokens are less than one window of 128"):
            evaluate_score.cut(ids, [], 128, 20)
        with self.refused("--prompt: 64 is not allowed; allowed: 2 to 63"):
            evaluate_score.cut(ids, [1], 64, 64)


class Scoring(unittest.TestCase):
    def test_distances(self):
        ours, exact = torch.tensor([[0.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.0, torch.log(torch.tensor(3.0))], [2.0, 1.0]])
        out = torch.empty(4, 2)
        evaluate_score.compare(ours, exact, torch.tensor([1, 0]), out)
        # KL((1/4, 3/4) || (1/2, 1/2)) = log 2 - H(1/4)
        torch.testing.assert_close(out[0], torch.tensor([0.130812, 0.0]), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(out[1], torch.tensor([0.693147, 0.313262]), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(out[2, 0], torch.tensor(0.287682), rtol=1e-4, atol=1e-6)
        self.assertEqual(out[3].tolist(), [0.0, 1.0])

    @torch.inference_mode()
    def test_through_the_cache(self):
        """DynamicCache gives the floor and the text's own likelihood; KittyCache is apart from it, by its bits."""
        for kind in ("llama", "gemma3"):
            model, windows = build(kind, torch.float32), windows_of(3, 320, 280)
            reference = evaluate_score.Reference(model, windows, batch=2)
            scores = {name: evaluate_score.score(name, model, reference, windows, batch=2) for name in ("dynamic", "fp16", "kivi-2")}
            kl = {name: score.kl.mean().item() for name, score in scores.items()}
            self.assertLess(abs(kl["dynamic"]), 1e-6)
            self.assertLess(kl["fp16"], 1e-4)
            self.assertGreater(kl["kivi-2"], 10 * kl["fp16"])
            model.set_attn_implementation("sdpa")
            logits = model(input_ids=windows.ids[:, :-1], use_cache=False).logits[:, 280:]
            nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows.ids[:, 281:].flatten(), reduction="none").view(3, 40)
            for found in (scores["dynamic"].nll, scores["kivi-2"].nll_exact):
                torch.testing.assert_close(found, nll.cpu(), rtol=1e-3, atol=1e-3)
            self.assertEqual([part[:2] for part in scores["fp16"].by_context(280, 2)], [[281, 300], [301, 320]])

    @torch.inference_mode()
    def test_logits_that_are_not_known(self):
        model, windows = build("llama", torch.float32), windows_of(1, 40, 20)
        forward = model.forward

        def doubled(*args, **kwargs):
            result = forward(*args, **kwargs)
            result.logits = 2 * result.logits
            return result

        model.forward = doubled
        with self.assertRaisesRegex(CommandError, "LlamaForCausalLM does more to its logits"):
            evaluate_score.Reference(model, windows, batch=1)


class Needle(Refusals):
    def test_where_things_are(self):
        tokenizer = word_tokenizer("<s>")
        filler = tokenizer(TEXT).input_ids
        hay = evaluate_needle.build(tokenizer, filler, [tokenizer.bos_token_id], 200, trials=2)
        self.assertEqual(hay.ids.shape, (10, 200 + evaluate_needle.WORDS))
        self.assertEqual([depth for depth in hay.depths if depth == 0.1], [0.1] * 2)
        for row, candidates, depth in zip(hay.ids.tolist(), hay.candidates.tolist(), hay.depths):
            phrase = row[200:]
            self.assertEqual(tokenizer.decode(row[hay.prompt : 200]).split()[:3], ["What", "is", "the"])
            at = next(i for i in range(200) if row[i : i + len(phrase)] == phrase)
            self.assertAlmostEqual(at / 200, depth, delta=0.12)
            for word, among in zip(phrase, candidates):
                self.assertEqual(among[0], word)
                self.assertEqual(len(set(among)), evaluate_needle.CANDIDATES)

    @torch.inference_mode()
    def test_against_one_pass(self):
        """What is found through the cache is what the logits of one pass over everything say."""
        tokenizer = word_tokenizer()
        model = build("llama", torch.float32, vocab_size=len(tokenizer))
        hay = evaluate_needle.build(tokenizer, tokenizer(TEXT).input_ids, [], 150, trials=3)
        found = evaluate_needle.search("dynamic", model, hay, batch=4)
        model.set_attn_implementation("sdpa")
        logits = model(input_ids=hay.ids.to(DEVICE), use_cache=False).logits[:, 149:-1]
        among = logits.gather(-1, hay.candidates.to(DEVICE))
        for result in found:
            rows = torch.tensor([depth == result.depth for depth in hay.depths])
            self.assertAlmostEqual(result.choice, (among[rows].argmax(-1) == 0).float().mean().item(), places=6)
            self.assertAlmostEqual(result.logprob, among[rows].log_softmax(-1)[..., 0].mean().item(), places=3)

    def test_refusals(self):
        tokenizer = word_tokenizer()
        with self.refused("--needle: 20 tokens do not hold needle and question; at least"):
            evaluate_needle.build(tokenizer, [1, 2, 3], [], 20, 1)
        few = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"castle": 0, "<unk>": 1}, unk_token="<unk>")))
        with self.refused("only . of the words are one token"):
            evaluate_needle.build(few, [1, 2, 3], [], 200, 1)


class Command(Refusals):
    def test_end_to_end(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            tokenizer = word_tokenizer("<s>")
            tokenizer.save_pretrained(folder / "model")
            build("llama", torch.float32, vocab_size=len(tokenizer)).save_pretrained(folder / "model")
            (folder / "text.txt").write_text(TEXT)
            results = folder / "results.json"
            results.write_text('[\n {"op": "attend", "us": 1.5}\n]\n')
            arguments = [str(folder / "model"), "--variants", "kitty,fp16", "--text", str(folder / "text.txt"), "--window", "256",
                         "--prompt", "224", "--tokens", "60", "--needle", "128", "--trials", "1", "--dtype", "fp32", "--plot",
                         str(folder / "plot.svg"), "--results", str(results)]
            outputs = []
            for more in ([], ["--json"]):
                with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()):
                    self.assertEqual(evaluate.main(arguments + more), 0)
                outputs.append(output.getvalue())
            self.assertIn("by KL: dynamic < fp16 < kitty", outputs[0])
            rows = json.loads(outputs[1])
            self.assertEqual([row["variant"] for row in rows if row["op"] == "evaluate"], ["dynamic", "kitty", "fp16"])
            self.assertEqual(rows[0]["tokens"], 64)
            merged = json.loads(results.read_text())
            self.assertEqual(len(merged), 1 + len(rows), "rows of the same run are replaced")
            self.assertEqual(merged[0], {"op": "attend", "us": 1.5})
            xml.etree.ElementTree.parse(folder / "plot.svg")

    def test_options(self):
        with self.refused("'kity' is not a cache; did you mean kitty"):
            evaluate.choose_variants("kitty,kity")
        for wrong in ("kitty,kitty", "dynamic", "kitty,"):
            with self.refused("--variants: '.*' is not allowed"):
                evaluate.choose_variants(wrong)
        with self.refused("'quanto-3' is not allowed; allowed: quanto-2, quanto-4"):
            evaluate.choose_variants("quanto-3")
        for arguments, message in (
            (["m", "--plot", "x.png"], "--plot: 'x.png' is not allowed"),
            (["m", "--needle", "1024,x"], "--needle: '1024,x' is not allowed"),
            (["m", "--batch", "0"], "--batch: 0 is not allowed; allowed: 1 or more"),
        ):
            with self.refused(message):
                evaluate.parse_arguments(arguments)

    def test_length_of_the_model(self):
        options = evaluate.parse_arguments(["m", "--window", "300", "--needle", "8192"])
        with self.refused("--needle: 8192 is not allowed; allowed: at most 4096"):
            evaluate.check_length(tiny("llama"), options)


class Reporting(Refusals):
    def test_numbers(self):
        for value, text in ((None, "-"), (7, "7"), (0.0, "0"), (0.0032, "0.003200"), (21.373, "21.37"), (3283.2, "3283"),
                            (1.5e-9, "1.500e-09")):
            self.assertEqual(number(value), text)

    def test_files_of_rows(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.json"
            merge_rows(path, [{"op": "a", "n": 1, "us": 1.0}, {"op": "a", "n": 2, "us": 2.0}], ("op", "n"))
            merge_rows(path, [{"op": "a", "n": 1, "us": 3.0}], ("op", "n"))
            self.assertEqual(sorted(row["us"] for row in json.loads(path.read_text())), [2.0, 3.0])
            before = path.read_text()
            with self.assertRaises(ValueError):
                merge_rows(path, [{"op": "a", "us": float("nan")}], ("op",))
            self.assertEqual(path.read_text(), before)
            path.write_text('{"op": "a"}')
            with self.refused("expected a list of rows"):
                merge_rows(path, [], ("op",))

    def test_chart_of_odd_rows(self):
        """A divergence of zero, none needles, names to be escaped."""
        row = {"model": "a<b", "dtype": "fp16", "tokens": 5, "text": "t&t", "card": "c", "date": "d", "kl_error": None}
        rows = [{**row, "variant": "dynamic", "kl": 0.0}, {**row, "variant": "kitty", "kl": 0.01}]
        with tempfile.TemporaryDirectory() as folder:
            evaluate_chart.draw(Path(folder) / "x.svg", rows, [])
            xml.etree.ElementTree.parse(Path(folder) / "x.svg")

    def test_gemma_merges_by_rank(self):
        """Unigram would take the pieces of the least ranks together, "ca" "st"; merges in order of rank make "cast"."""
        pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "c", "a", "s", "t", "st", "ca", *(f"<unused{i}>" for i in range(20)), "cast"]

        class GemmaOfAFile(PreTrainedTokenizerFast):
            pass

        ranks = [(piece, -float(rank)) for rank, piece in enumerate(pieces)]
        tokenizer = GemmaOfAFile(tokenizer_object=Tokenizer(models.Unigram(ranks, unk_id=3)), unk_token="<unk>", bos_token="<bos>")
        before = tokenizer("castcas").input_ids
        self.assertNotIn(pieces.index("cast"), before)
        loading.mend_gemma(tokenizer)
        self.assertEqual(tokenizer("castcas").input_ids, [pieces.index(piece) for piece in ("<bos>", "cast", "ca", "s")])

    def test_a_file_that_is_not_the_model(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / loading.FETCHABLE["smollm2-135m"]["gguf"]
            path.write_bytes(b"GGUF")
            with self.refused("is not the expected file"):
                loading.fetch("smollm2-135m", Path(folder))


if __name__ == "__main__":
    unittest.main()
