"""Ways of saying what happens from one picture to the next."""

from __future__ import annotations

from nextstep.world.splits import Phrasings

STEP = Phrasings("""
    {it} moves {way}
    {it} goes {way}
    {it} takes a step {way}
    {it} goes one step {way}
    {it} heads {way}
    {it} shifts {way}
    {it} slides one place {way}
    {it} heads one place {way}
    now {it} heads one step {way}
    {it} moves one place {way}
    {it} moves one step {way}
    {it} makes a step {way}
    {it} takes one step {way}
    {it} runs {way}
    {it} walks {way}
    {it} is moved {way}
    one step {way} for {it}
    {it} changes its place, one step {way}
    {it} heads one step {way}
    {it} turns and heads one place {way}
    {it} is one step {way} now
""")
FALL = Phrasings("""
    {it} falls
    {it} falls down
    {it} drops to the bottom
    {it} tumbles all the way down
    {it} sinks to the bottom
    {it} falls to the ground
    {it} comes crashing down
    {it} drops to the ground
    {it} goes down to the bottom
    {it} goes all the way down
    {it} sinks all the way down
    {it} comes down to the ground
    down to the bottom goes {it}
    down drops {it}
    {it} falls off and lands at the bottom
    {it} falls onto the ground
    {it} sinks down to the ground
    {it} moves to the bottom
    {it} comes down to the bottom
    {it} tumbles down
    {it} tumbles down to the bottom
    now {it} drops down
""")
RISE = Phrasings("""
    {it} rises to the top
    {it} flies up high
    {it} floats all the way up
    {it} shoots up to the top
    {it} climbs to the very top
    {it} lifts off
    {it} soars to the top
    {it} soars up high
    {it} soars all the way up
    high up {it} soars
    {it} goes all the way up
    {it} flies to the top
    {it} flies all the way up
    {it} floats to the top
    {it} climbs all the way up
    {it} shoots all the way up
    up to the top goes {it}
""")
JUMP = Phrasings("""
    {it} jumps over {other}
    {it} hops over {other}
    {it} leaps over {other}
    {it} jumps to the other side of {other}
    {it} bounces over {other}
    {it} hops to the other side of {other}
    {it} bounces to the other side of {other}
    {it} bounces up and over {other}
    {it} bounces off, over {other}
    {it} hops up and over {other}
    {it} jumps up and over {other}
    {it} leaps to the other side of {other}
    {it} goes over {other}
    {it} flies over {other}
    {it} climbs over {other}
    over {other} jumps {it}
    with one jump {it} is on the other side of {other}
    {it} moves over {other} to the other side
""")
SWAP = Phrasings("""
    {it} and {other} swap places
    {it} and {other} change places
    {it} trades places with {other}
    {it} and {other} switch positions
    {it} swaps with {other}
    {it} takes the place of {other} and the other way round
    {it} takes the place of {other}, and {other} that of {it}
    {it} goes to the place of {other} and the other way round
    {it} moves to where {other} is, and the other way round
    {it} is now where {other} was, and the other way round
    {it} changes places with {other}
    {it} swaps places with {other}
    {it} and {other} switch places
    {it} and {other} trade places
    {other} and {it} swap places
    {it} swaps its place with that of {other}
    {it} takes the place where {other} was, and {other} that of {it}
    {it} takes over where {other} was, and the other way round
""")
TURN = Phrasings("""
    {it} turns around
    {it} looks the other way
    {it} faces the other way
    {it} turns to the other side
    {it} is seen from the other side
    {it} turns to look the other way
    {it} now looks to the other side
    {it} turns and looks to the other side
    the other way is where {it} looks now
    {it} turns the other way
    {it} turns its face to the other side
    {it} faces the other side
    {it} is now seen the other way round
    {it} is seen as in a mirror
""")
GROW = Phrasings("""
    {it} grows
    {it} gets bigger
    {it} becomes larger
    {it} swells up
    {it} grows in size
    {it} is bigger now
    {it} becomes big
    the size of {it} becomes bigger
    {it} is larger now
    {it} is now larger than before
    {it} grows and grows
    {it} grows bigger
    {it} gets big
    now {it} is big
    the size of {it} grows
    {it} becomes as large as it can
    {it} gets large
    now {it} is larger than before
    now {it} is bigger
    {it} grows and becomes large
    {it} grows to a larger size
    {it} gets a larger size
    {it} gets to be larger
    {it} has a larger size now
    the size of {it} gets larger
""")
SHRINK = Phrasings("""
    {it} shrinks
    {it} gets smaller
    {it} becomes tiny
    {it} dwindles
    {it} shrinks in size
    {it} is smaller now
    {it} gets small
    {it} gets tiny
    {it} gets tinier
    {it} becomes small
    {it} is now smaller than before
    {it} takes on a smaller size
    {it} is small now
    {it} is tiny now
    {it} shrinks and shrinks
    now {it} is small
    the size of {it} shrinks
""")
COLOUR = Phrasings("""
    {it} turns {colour}
    {it} becomes {colour}
    {it} is painted {colour}
    {it} changes its colour to {colour}
    {it} is {colour} now
    {it} takes on the colour {colour}
    the colour of {it} becomes {colour}
    the colour of {it} changes to {colour}
    {it} changes to {colour}
    {it} gets painted {colour}
    {it} gets the colour {colour}
    {it} has the colour {colour} now
    now {it} is {colour}
    {colour} becomes the colour of {it}
    {it} becomes painted in {colour}
    {colour} paint falls on {it}
    the colour of {it} turns {colour}
    {it} changes from its colour to {colour}
    {it} is coloured {colour} now
    {it} has {colour} paint on it now
    {it} changes colour, it is {colour} now
""")
VANISH = Phrasings("""
    {it} disappears
    {it} vanishes
    {it} goes away
    {it} is gone
    {it} fades away
    {it} leaves
    {it} goes out of the picture
    {it} goes home and is gone
    {it} goes and does not come back
    {it} runs away
    {it} flies away
    {it} leaves the picture
    {it} disappears from the picture
    {it} moves out of the picture
    {it} is removed
    {it} is no longer there
    {it} is not there any more
    {it} cannot be seen any more
""")
BOTH = Phrasings("""
    {first}, {second}
    {first} and {second}
    {first} while {second}
    {first}; {second}
    {first}, and {second}
    {first}, at the same time {second}
    while {first}, {second}
    while {second}, {first}
    {first}, and all the while {second}
    at the same time {first} and {second}
    {first} and at the same time {second}
    {first} and {second} at the same time
    both at once: {first}, {second}
    {first}, then {second}
    {first} and then {second}
    first {first}, then {second}
    {first} and also {second}
    {first}, also {second}
""")
BACK = Phrasings("""
    back again
    everything goes back one step
    the last step is undone
    undo that
    back to how it was before
    time runs backwards by one step
    go back one step
    one step back
    one step back in time
    time goes back one step
    it all goes back to how it was before
    everything goes back to how it was
    everything is back where it was one step before
    everything as before
    back to the last picture
    undo the last step
    the last step goes back
    all is undone
""")
