"""Decoding: beam search, greedy search and sampling as pure functions over an explicit cache.

The functions know nothing about models. They call `step`, which reads one token per row and returns
the logits of the next token and a new cache. Each is one `lax.while_loop` that stops when every row
is done and costs one step per output position. All of them keep these rules:

* A hypothesis Y ends with EOS; its length |Y| counts the EOS and is at most the row's limit. At the
  limit EOS is the only continuation, and log P(Y) includes the model's probability of ending there.
  No hypothesis is truncated, but where `beam_search` is asked to leave the end open, as in the
  continuation of a text.
* log P(Y) is the model's: normalized over the whole vocabulary, although PAD and BOS are never
  emitted.
* Ties go to EOS, then to the better parent, then to the lower token: results are deterministic.
* A row whose limit is 0 (padding of the batch) is done at once: length 0, only PAD, score -inf.
* Rows do not influence one another.

In the shapes of this room K counts beams, C the candidates to choose from, and R is any number of
rows.
"""
