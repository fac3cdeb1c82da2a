"""Ways of asking about pictures."""

from __future__ import annotations

from nextstep.world.splits import Phrasings

WHAT = Phrasings("""
    What is in the picture?
    Describe the picture.
    What can you see?
    What does the picture show?
    Tell me what is here.
    Caption this picture.
    What is drawn here?
    What do you see?
    What do you see here?
    What is this a picture of?
    What is this a drawing of?
    What is there to see?
    What can be seen here?
    What has been drawn?
    Say what is drawn in the picture.
    Describe what you see.
    What is drawn in this picture?
    What has been drawn here?
    Tell me what is drawn.
""")
HOW_MANY = Phrasings("""
    How many {things} are there?
    How many {things} are in the picture?
    Count the {things}.
    What is the number of {things}?
    How many {things} can you see?
    Tell me how many {things} there are.
    How many {things} do you see?
    How many {things} are here?
    How many {things} does the picture show?
    How many {things} can be seen in the picture?
    In this picture, how many {things} are there?
    Count the {things} in the picture.
    Tell me the number of {things}.
    Say how many {things} there are.
""")
WHERE = Phrasings("""
    Where {verb} {it}?
    In which part of the picture {verb} {it}?
    Tell me where {it} {verb}.
    Where in the picture {verb} {it}?
    Which place {verb} {it} in?
    At which place {verb} {it}?
    Which part of the picture {verb} {it} in?
    What part of the picture {verb} {it} in?
    Tell me in which place {it} {verb}.
    Tell me the place that {it} {verb} in.
    At which place of the picture {verb} {it}?
    Where {verb} {it} in this picture?
    Where {verb} {it} located?
    Where {verb} {it} drawn?
    Where {verb} {it} to be seen?
    Can you tell where {it} {verb}?
    Say where {it} {verb}.
""")
WHERE_FROM = Phrasings("""
    Where {verb} {it}, seen from {other}?
    On which side of {other} {verb} {it}?
    From {other}, where {verb} {it}?
    In which direction from {other} {verb} {it}?
    Tell me where {it} {verb}, seen from {other}.
    Which way from {other} {verb} {it}?
    Seen from {other}, where {verb} {it}?
    Seen from {other}, in which direction {verb} {it}?
    In which direction {verb} {it}, seen from {other}?
    Tell me on which side of {other} {it} {verb}.
    Tell me which way {it} {verb} from {other}.
    Tell me the direction in which {it} {verb} from {other}.
    Can you tell where {it} {verb} from {other}?
    If you look from {other}, where {verb} {it}?
    Which side of {other} {verb} {it} on?
    What side of {other} {verb} {it} on?
    From {other}, on which side {verb} {it}?
    From {other}, which way {verb} {it}?
""")
WHICH_COLOUR = Phrasings("""
    What colour {verb} {it}?
    Which colour {verb} {it}?
    Tell me what colour {it} {verb}.
    What colour {verb} {it} in this picture?
    Can you tell what colour {it} {verb}?
    What would you say, what colour {verb} {it}?
    Which colour {verb} {it} drawn in?
    Which colour {verb} {it} painted in?
    In which colour {verb} {it} drawn?
    In what colour {verb} {it} painted?
    Can you say which colour {it} {verb}?
    What colour {verb} {it} here?
    Say what colour {it} {verb}.
    Do you see what colour {it} {verb}?
    Can you see which colour {it} {verb}?
    Do you know what colour {it} {verb}?
""")
WHAT_CHANGED = Phrasings("""
    What changed?
    What is different?
    What is the difference?
    What has been changed?
    Tell me what changed.
    What is not the same?
    Tell me the difference.
    Can you see the difference?
    What difference can you see?
    What is the change?
    What is different now?
    What is different in the second picture?
    What is now not the same?
    What has changed?
    What was changed?
    Which thing changed?
    Say what changed.
""")
WHICH_WORD = Phrasings("""
    What does the sign say?
    What is written on the sign?
    Read the sign.
    Which word is on the sign?
    Tell me what the sign says.
    What can you read here?
    Read the word on the sign.
    Read what is on the sign.
    Read what the sign says.
    Can you read what is written?
    Which word can you read?
    Which word does the sign show?
    What word is on the sign?
    What word is written here?
    What is written here?
    What is the word on the sign?
    What does it say on the sign?
    Tell me the word on the sign.
    Say what is written on the sign.
""")
WHICH_STYLE = Phrasings("""
    In which style is it drawn?
    What is the style?
    Which style is this?
    Name the style.
    Tell me the style.
    What style of drawing is it?
    Which style is it drawn in?
    Which style can you see here?
    Which style of drawing is it?
    This is drawn in which style?
    What style is it?
    What style is it drawn in?
    What is the style of this picture?
    What is the name of the style?
    Tell me the name of the style.
    Tell me which style it is.
    Say which style it is drawn in.
    Can you name the style?
    Which style does this picture have?
    Tell me in which style this is drawn.
    What style is this picture?
""")
IS_THERE = Phrasings("""
    Is there {a}?
    Is there {a} in the picture?
    Can you see {a}?
    Does the picture show {a}?
    Do you see {a} here?
    Would you find {a} in this picture?
    Does the picture have {a} in it?
    Does it show {a} here?
    Do you see {a}?
    Do you see {a} in the picture?
    Can you see {a} in this picture?
    Can you find {a} here?
    Is {a} in the picture?
    Is {a} drawn here?
    Is there {a} here?
    Tell me, is there {a}?
    Does it have {a} in it?
    Would you say it shows {a}?
    Does this drawing show {a} here?
    Do the pictures here show {a}?
    Does this drawing here show {a}?
    Tell me, does it show {a}?
""")
