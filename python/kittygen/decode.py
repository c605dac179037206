"""Greedy decoding with one CUDA graph per step.

    from kittygen import KittyCache
    from kittygen.decode import Decoder

    cache = KittyCache.for_model(model, max_tokens=8192)
    decoder = Decoder(model, cache, compile=True)
    tokens = decoder.generate(**tokenizer(texts, return_tensors="pt", padding=True).to("cuda"), max_new_tokens=512)

The prompt runs as it does in model.generate(). Then every step is the same work at the same addresses: a token per row goes
in, the most likely next one comes out, positions and lengths advance on the device. Two steps run eagerly (they compile, and
warm up), the third is captured, and from then on the host replays. Rows may be of any length (left padding) and finish on
their own: a finished row goes on with pad tokens, as in generate(), until all have.

On the CPU the same loop runs eagerly. Afterwards the cache is as after generate(): a further turn may follow, by either way.
"""

import torch

from .cache import cache_argument
from .errors import KittyError
from .sliding import Ring, is_sliding

WARM = 2  # eager steps ahead of a capture


class Decoder:
    def __init__(self, model, cache, compile=False, capture=None, eos_token_id=None, pad_token_id=None):
        """compile: torch.compile the model for the steps, True or a dict of its options (not mode="reduce-overhead": graphs are
        made here). capture: into a CUDA graph; None: where the model is on a GPU.

        Token ids default to the model's generation_config; eos_token_id may be a list, or () to go on to the last step.
        """
        self.model, self.cache, self.steps = model, cache, cache.steps
        device = self.steps.store.device
        if capture and device.type != "cuda":
            raise KittyError(f"capture=True, but the cache is on {device}: CUDA graphs need a GPU")
        if "chunked_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ()):
            raise KittyError("Decoder keeps layers with a sliding window, not with attention in chunks: use model.generate()")
        self.capture = device.type == "cuda" if capture is None else capture
        config = model.generation_config
        eos = config.eos_token_id if eos_token_id is None else eos_token_id
        eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        self.eos = torch.tensor(eos, device=device) if eos else None
        pad = config.pad_token_id if pad_token_id is None else pad_token_id
        self.pad = pad if pad is not None else eos[0] if eos else 0
        options = dict(compile) if isinstance(compile, dict) else {}
        self.forward = torch.compile(model, fullgraph=True, **options) if compile else model
        self.argument = cache_argument(model)
        self.graph, self.graph_batch = None, None

    @torch.inference_mode()
    def generate(self, input_ids, attention_mask=None, max_new_tokens=128, check_every=16, token_type_ids=None):
        """The new tokens, [batch, up to max_new_tokens]; token_type_ids, which tokenizers give, are not looked at. Every `check_every` steps the host looks whether all rows are done."""
        self.prefill(input_ids, attention_mask, max_new_tokens)
        try:
            while self.made < max_new_tokens and not (self.eos is not None and bool(self.done.all())):
                self.run(min(check_every, max_new_tokens - self.made))
        finally:
            self.finish()
        return self.history[:, : self.made]

    @torch.inference_mode()
    def prefill(self, input_ids, attention_mask=None, max_new_tokens=128):
        """Takes in prompts, or a further turn, and makes the first token; the last token of a batch must be a real one."""
        steps, device = self.steps, self.steps.store.device
        batch, width = input_ids.shape
        arguments = {}
        if attention_mask is not None:
            position = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -width:]
            arguments = {"attention_mask": attention_mask, "position_ids": position}
        logits = self.model(
            input_ids=input_ids, use_cache=True, logits_to_keep=1, **{self.argument: self.cache}, **arguments
        ).logits[:, -1]
        self.token = torch.empty((batch, 1), dtype=torch.long, device=device)
        self.position = torch.tensor(steps.store.stored, device=device)[:, None]
        self.count = torch.zeros((1, 1), dtype=torch.long, device=device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        self.history = torch.full((batch, max_new_tokens), self.pad, dtype=torch.long, device=device)
        self.made, self.graph = 1, None
        self.choose(logits)
        self.rings = {}
        lengths = self.position[:, 0]
        for index, layer in enumerate(self.cache.layers):
            if is_sliding(layer):
                self.rings[index] = Ring(layer, lengths, self.position)
        for index, ring in self.rings.items():
            self.cache.layers[index] = ring
        self.stock, self.cache.stock = self.cache.stock, []
        try:
            self.reserve()
        except BaseException:
            self.finish()
            raise

    def choose(self, logits):
        """The next token of every row; all of it on the device."""
        token = logits.argmax(-1)
        if self.eos is not None:
            token = token.masked_fill(self.done, self.pad)
            self.done.logical_or_((token[:, None] == self.eos).any(-1))
        self.token.copy_(token[:, None])
        self.history.scatter_(1, self.count.expand(len(token), 1), self.token)
        self.count.add_(1)

    def step(self):
        masks = {}
        if self.rings:
            masks = {"attention_mask": {"full_attention": None, "sliding_attention": next(iter(self.rings.values())).mask()}}
        logits = self.forward(
            input_ids=self.token, position_ids=self.position, use_cache=True, logits_to_keep=1, **{self.argument: self.cache}, **masks
        ).logits[:, -1]
        self.choose(logits)
        self.position.add_(1)

    @torch.inference_mode()
    def run(self, count):
        """`count` steps; returns at once where they are replayed."""
        if self.made + count > self.history.shape[1]:
            raise KittyError(f"{count} more tokens after {self.made}; prefill was told max_new_tokens={self.history.shape[1]}")
        self.steps.trusted = True
        try:
            while count and not self.replaying():
                self.step()
                self.made += 1
                count -= 1
                if self.capture and self.made == 1 + WARM:
                    self.record()
            if count:
                for _ in range(count):
                    self.graph.replay()
                self.steps.advance(count)
                self.made += count
        finally:
            self.steps.trusted = False

    def replaying(self):
        return self.graph is not None and self.graph_batch == self.steps.store.batch_count

    def reserve(self):
        """What the steps to the last one need: a captured step reserves and uploads nothing itself.

        Eager steps behind it are divided for the same reservation, so that a replay gives their bits.
        """
        store = self.steps.store
        left = self.history.shape[1] - self.made
        store.open_batch(max(store.stored) + left, len(store.stored))
        store.set_slots([1] * len(store.stored), list(range(len(store.stored))))
        store.reserve([tokens + left for tokens in store.stored])
        store.upload()

    def record(self):
        if self.made == self.history.shape[1]:
            return
        self.reserve()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()
        self.graph_batch = self.steps.store.batch_count

    def finish(self):
        """Gives the sliding layers back to the cache, which any other way of generating can go on with."""
        lengths = self.position[:, 0]
        for index, ring in self.rings.items():
            self.cache.layers[index] = ring.back(lengths, self.steps.seen)
        self.rings, self.cache.stock = {}, self.stock
