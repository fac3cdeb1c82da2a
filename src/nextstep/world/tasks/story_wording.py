"""Ways of saying what happens in a story."""

from __future__ import annotations

from nextstep.world.splits import Phrasings

MEET = Phrasings("""
    {who} meets {a} called {other}.
    {who} meets {other}, {a}.
    Along comes {a} named {other} and says hello to {who}.
    {other}, {a}, comes to visit {who}.
    {who} makes friends with {a} called {other}.
    Then {other}, {a}, joins {who}.
    Along comes {other}, {a}, to meet {who}.
    Now {a} named {other} comes along and meets {who}.
    Along with {who} there is now {a} called {other}.
    Here comes {a} named {other} to see {who}.
    Then {a} called {other} says hello to {who}.
    {who} says hello to {a} named {other}.
    {other}, {a}, says hello to {who}.
    {other}, {a}, meets {who}.
    {who} sees {a} called {other}.
    {who} and {other}, {a}, are friends now.
    Then {who} meets {a} named {other}.
    Now {a} called {other} is there and joins {who}.
""")
FIND = Phrasings("""
    {who} finds {a}.
    {who} discovers {a}.
    {who} brings {a}.
    There is {a} on the ground, and {who} is glad.
    {who} picks up {a}.
    {who} comes across {a}.
    {who} runs across {a}.
    {who} walks across the land and finds {a}.
    Across the way {who} finds {a}.
    {who} comes and finds {a}.
    {who} comes back with {a}.
    {who} comes along and brings {a}.
    {who} sees {a} on the ground.
    On the ground {who} finds {a}.
    Look, {who} has found {a}.
    {who} has {a} now.
    Now {who} has {a}.
""")
EAT = Phrasings("""
    {who} eats {it}.
    {who} is hungry and eats {it}.
    {who} eats {it} all up.
    Yum! {who} eats {it}.
    {who} has {it} for lunch.
    In one bite {who} swallows {it}.
    {who} eats up {it}.
    {who} takes {it} and eats it up.
    {who} has a bite, and {it} is all gone.
    Yum, {who} has {it} for lunch!
    {who} swallows {it}.
    {who} swallows {it} in one bite.
    {who} takes {it} and it is all gone.
    All of {it} goes to {who} for lunch.
    Yum! {who} eats all of {it}.
    {who} eats up all of {it}.
    Now {who} eats {it}.
    Hungry, {who} eats all of {it}.
""")
LOSE = Phrasings("""
    {who} gives {it} away.
    {who} loses {it}.
    {who} puts {it} away.
    {who} looks again, but {it} is no longer there.
    {who} hides {it}.
    {who} sends {it} back.
    {who} puts {it} out of view.
    {who} puts {it} back where it was.
    {who} puts {it} down and cannot find it any more.
    {who} takes {it} away.
    {who} sends {it} away.
    {who} brings {it} back.
    {who} gives {it} back.
    {who} does not want {it} any more.
    Now {who} is without {it}.
""")
APPEAR = Phrasings("""
    {a} appears in the sky.
    Up in the sky there is {a}.
    Look, {a} in the sky!
    Far above, {a} can be seen.
    High above, {a} comes into view.
    Now {a} is in the sky.
    Look, there is {a} high above!
    Look at the sky, there is {a}!
    High up in the sky: {a}!
    In the sky there is now {a}.
    Now there is {a} in the sky.
    {a} is in the sky now.
    {a} comes up in the sky.
    Suddenly {a} is in the sky.
    Up above, {a} appears.
    The sky shows {a}.
    Look, {a} high in the sky!
    Look at {a} up in the sky!
    Look, {a} comes up!
    Look up in the sky, there is {a}!
""")
CHANGE_SKY = Phrasings("""
    {it} goes and {a} comes.
    Instead of {it} there is now {a} in the sky.
    {it} makes way for {a}.
    {it} leaves, and {a} takes its place.
    After {it} comes {a}.
    {it} turns into {a}.
    After {it} there is {a} in the sky.
    First {it}, after that {a}.
    After a time {it} goes and {a} comes.
    {it} goes down and {a} comes up.
    {it} disappears and {a} appears.
    {it} is gone, and now there is {a}.
    {it} becomes {a}.
    {it} changes into {a}.
    {a} takes the place of {it}.
    Now {a} is in the sky instead of {it}.
    In place of {it} there is {a} in the sky.
    Where {it} was, {a} appears.
""")
CLEAR_SKY = Phrasings("""
    {it} goes away.
    {it} disappears from the sky.
    {it} is gone again.
    {it} drifts off.
    Soon {it} cannot be seen any more.
    The sky is empty again, without {it}.
    {it} is gone from the sky.
    {it} goes from the sky.
    {it} drifts away from the sky.
    {it} leaves the sky.
    {it} disappears.
    Suddenly {it} disappears.
    Now {it} is no longer in the sky.
    {it} is not in the sky any more.
    {it} fades away.
    {it} goes down and is gone.
    Soon {it} disappears.
    {it} goes down and disappears.
    Then {it} disappears again.
""")
PAINT = Phrasings("""
    {who} falls into {colour} paint.
    {who} turns {colour} all over.
    Suddenly {who} is {colour}.
    By magic {who} becomes {colour}.
    A spell makes {who} {colour}.
    Somebody paints {who} {colour}.
    A spell turns {who} {colour}.
    By a spell {who} becomes {colour}.
    Somebody says a spell, and {who} is {colour}.
    Magic makes {who} {colour}.
    Paint makes {who} {colour} all over.
    {who} becomes {colour}.
    Now {who} is {colour} all over.
    {who} is painted {colour}.
    {who} has {colour} paint all over.
    The colour of {who} changes to {colour}.
    {who} takes on the colour {colour}.
    Suddenly {who} turns {colour}.
    A spell makes it so that {who} is {colour}.
    By magic a spell makes the colour of {who} {colour}.
    Somebody makes {who} {colour} with paint.
    By magic somebody makes {who} {colour}.
""")
GROW = Phrasings("""
    {who} grows and grows.
    {who} becomes very big.
    {who} is a giant now.
    A magic drink makes {who} big.
    {who} gets bigger and bigger.
    Suddenly {who} is huge.
    {who} grows and gets bigger.
    Bigger and bigger grows {who}.
    By magic {who} gets bigger than before.
    {who} gets very big.
    {who} gets larger and larger.
    {who} becomes a giant.
    {who} is very big now.
    {who} is huge now.
    By magic {who} becomes huge.
    A spell makes {who} big.
    Suddenly {who} is big.
""")
SHRINK = Phrasings("""
    {who} shrinks.
    {who} becomes very small.
    {who} is tiny now.
    A magic drink makes {who} small.
    {who} gets smaller and smaller.
    Suddenly {who} is tiny.
    Suddenly {who} is very small.
    Suddenly {who} shrinks.
    Suddenly a spell makes {who} small.
    {who} becomes tiny.
    A magic drink makes {who} tiny.
    {who} is very small now.
    {who} shrinks and shrinks.
    Smaller and smaller gets {who}.
""")
NORMAL = Phrasings("""
    {who} is as big as before again.
    {who} goes back to the usual size.
    The magic ends and {who} has the right size again.
    {who} takes on the normal size again.
    Soon {who} is no larger or smaller than at first.
    {who} has the old size again.
    {who} has the usual size again.
    {who} gets back the usual size.
    By magic {who} takes on the usual size.
    {who} goes back to normal.
    The magic ends and {who} goes back to normal.
    {who} comes back to the old size.
    {who} gets the right size back.
    {who} is of normal size again.
    Now {who} is as big as at first.
    {who} has the size from before again.
    Soon {who} is back at the normal size.
    The spell ends, and {who} is as big as before.
    Now {who} goes back to the right size.
""")
LEAVE = Phrasings("""
    {other} goes home.
    {other} says goodbye and leaves.
    It is late and {other} goes away.
    {other} has to go.
    {other} waves and is gone.
    {other} walks off.
    Goodbye! And {other} is gone.
    Soon {other} is gone.
    {other} runs off.
    It is late and {other} has to go home.
    {other} waves, then goes home.
    Now {other} waves and goes home.
    {other} goes home now.
    {other} goes off.
    {other} says goodbye and goes home.
    {other} has to go home.
    Away goes {other}.
    Home goes {other}.
    {other} is now gone.
    And now {other} is gone.
    {other} waves and then walks home.
    At the door {other} waves and leaves.
    {other} waves to everybody and walks home.
""")
SWAP = Phrasings("""
    {who} and {other} change places.
    {who} and {other} swap sides.
    {who} runs to the other side and {other} comes over.
    They play a game, and {who} and {other} switch places.
    {other} and {who} trade places.
    {who} takes the place of {other}, and {other} that of {who}.
    They play, and {who} and {other} trade places.
    They run around, and {who} and {other} swap places.
    They swap sides, {other} and {who}.
    {who} and {other} switch sides.
    {who} and {other} switch positions.
    {who} changes places with {other}.
    {who} trades places with {other}.
    {who} goes to the side of {other}, and {other} to that of {who}.
    {who} is now where {other} was, and {other} where {who} was.
    {who} and {other} play a game in which they switch sides.
    In a game {who} and {other} swap sides.
    {who} and {other} play a game and change sides.
    {who} and {other} play and switch sides.
    {who} and {other} run and switch sides.
""")
AROUND = Phrasings("""
    Everything around turns {bg}.
    Now the world is {bg}.
    Suddenly the background is {bg}.
    The light changes, and all around it is {bg}.
    The way leads to a land that is all {bg}.
    The air becomes {bg}.
    Now all around it is {bg}.
    The world turns {bg}.
    The world becomes {bg}.
    Suddenly all around it is {bg}.
    Everything around becomes {bg}.
    The background is now {bg}.
    The background turns {bg}.
    The background changes to {bg}.
    By magic the background becomes {bg}.
    The light turns {bg}.
    Here the land is {bg}.
    Now the background turns {bg}.
    Now all of the world turns {bg}.
    Now the light is {bg} all around.
    All the world turns {bg}.
    All around, the world becomes {bg}.
""")
SIGN = Phrasings("""
    {who} puts up a sign that says "{text}".
    {who} holds up a sign saying "{text}".
    {who} writes "{text}" on a sign.
    {who} shows a sign that reads "{text}".
    {who} makes a sign with the word "{text}".
    {who} carries a sign: "{text}".
    {who} makes a sign and writes "{text}" on it.
    {who} holds up a sign with the word "{text}".
    {who} puts up a sign: "{text}".
    {who} has a sign that reads "{text}".
    {who} carries a sign with "{text}" on it.
    {who} brings a sign that says "{text}".
    {who} makes a sign and writes the word "{text}" on it.
    {who} makes a sign that reads "{text}".
    {who} makes a sign saying "{text}".
    {who} makes a sign to show the word "{text}".
    {who} shows a sign with "{text}" on it.
    {who} shows the word "{text}" on a sign.
    {who} shows a sign: "{text}".
    {who} shows a sign that says "{text}".
    {who} has a sign with the word "{text}" on it.
    {who} has a sign: "{text}".
    {who} holds up the word "{text}" on a sign.
    {who} puts up a sign with the word "{text}".
    {who} puts up a sign reading "{text}".
    On a sign {who} writes "{text}".
    On a sign {who} writes the word "{text}".
""")
