"""Draw a picture, then change its style and its background."""

from nextstep import NextStepPipeline

pipeline = NextStepPipeline.from_pretrained("nano")
apple = pipeline.generate("red apple, noto style, white background", seed=1)[0]
apple.save("apple.png")

for name, instruction in {
    "mono": "make it mono style",
    "blue": "change the background to blue",
}.items():
    edited = pipeline.edit(apple.image, instruction, seed=1)[0]
    edited.save(f"apple-{name}.png")
    print(f"apple-{name}.png: {instruction}")
