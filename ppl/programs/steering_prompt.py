"""What a planner is told: the words of a steering module, and the rules that make one work.

The rules are those of the prompt of Grand et al. 2025 (arXiv:2504.07081, section 3 and appendix):
the unit of a step is the unit of the constraint; one prompt for fluency and one that knows the
constraint; weights correct for what was drawn from.
"""

from __future__ import annotations

from ppl.language.placeholders import filled

WORDS = """\
state.text          what has been written so far (a string)
state.step          number of this step, from 0
state.finished      whether the text has ended
state.anything = x  is remembered until the next step: numbers, strings, lists, dicts, sets, None
state.extend(until=None, max_tokens=None)
                    lets the follower write on, until what it writes contains the string `until` (or
                    one of several strings), or max_tokens; returns what it wrote. If the text has
                    ended already, the step ends here.
state.observe(words)
                    writes words in the follower's place; the particle pays their probability.
state.hint(note)    tells the follower something before it writes on, as a note to itself that is no
                    part of the text.
state.mask(only=None, never="", end=True)
                    which characters extend() may write in the rest of this step, and whether the
                    text may end in it.
state.require(condition)
                    gives the particle up at once unless the condition holds.
state.twist(log_value)
                    says how promising the text is, as a logarithm; it guides the search and does
                    not change the result.
state.finish()      ends the text here."""

RULES = """\
1. One step writes one unit of the constraint: a word if words are counted, a sentence if sentences
   are, a line if lines rhyme. Particles are compared after every step, so check each unit as soon
   as it is written. (A word has a space before it: after extend(until=" ") the last word of the
   text has only begun, and may go on.)
2. Require only what can be seen to be lost: a unit that breaks the constraint, a text that is too
   long already. What cannot be known before the end belongs into check(text).
3. The prompt `prior` (a string of the module, by default the task) is what makes a text good: keep
   it short and free of constraints. The prompt `proposal` says all that helps to obey. The follower
   writes from `proposal` and hints; weights correct for it, so that texts stay as fluent as under
   `prior`.
4. Hint at facts that are hard to count: words left, letters left, what must come now.
5. Write with mask() what no letter may break; write with observe() words that must stand where they
   stand.
6. step(state) and check(text) are plain functions, without async and yield, and deterministic: no
   clocks, no random numbers, no order of sets. A step extends and observes at most 64 times. Do not
   catch BaseException. Only the standard library is there; no files, no network.
7. check(text) says of a whole text whether it obeys: True or False."""

EXAMPLE = """\
import re

prior = "Write three sentences about the sea."
proposal = "Write three short sentences about the sea, of at most twelve words each."

def step(state):  # one sentence
    before = len(state.text)
    state.hint(f"sentence {state.step + 1} of 3, at most 12 words")
    if state.step == 1:
        state.observe(" Waves")
    state.mask(never="\\n", end=False)
    state.extend(until=[".", "!", "?"], max_tokens=30)
    state.require(right(state.text[before:]))
    if state.step == 2:
        state.finish()

def right(sentence):
    return sentence[-1] in ".!?" and len(sentence.split()) <= 12

def check(text):
    sentences = re.findall(r"[^.!?]+[.!?]", text)
    return len(sentences) == 3 and all(map(right, sentences)) and "Waves" in sentences[1]"""

PROMPT = f"""\
You write a Python module that steers a smaller language model, the follower, towards a text that
a task asks for. {{particles}} copies of a text ("particles") are written side by side. The module
defines

    step(state)     called again and again, for every particle, until its text is finished, at most
                    {{steps}} times
    check(text)     whether a finished text obeys the task

and may define the strings `prior` and `proposal`. All that a step can do:

{WORDS}

Rules:

{RULES}

An example, for the task "Write three sentences about the sea, of at most twelve words each; the
second begins with Waves.":

```python
{EXAMPLE}
```

The task:

{{task}}

Answer with one Python module in a fence, and nothing else."""

AGAIN = """\
The module failed:

{faults}

Write the whole module again, mended, in one fence."""


def first(task: str, particles: int, steps: int) -> str:
    """The planner's first message."""
    return filled(PROMPT, particles=str(particles), steps=str(steps), task=task)
