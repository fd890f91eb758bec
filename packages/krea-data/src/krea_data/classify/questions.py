"""Questions for a labeller, one for each classifier of the recipe. Change a word and the version changes with it."""

from krea_data.classify.labels import Question

__all__ = ["ARTIFACT", "SYNTHETIC", "UNSAFE"]

_FORM = (
    'Answer with one JSON object and nothing else: {"answer": "yes"}, {"answer": "no"} or {"answer": "unsure"}. '
    "Say unsure when the picture does not show enough to decide. Do not judge whether it is beautiful."
)

SYNTHETIC = Question(
    name="synthetic",
    prompt=(
        "Was this picture made, wholly or in its main parts, by a generative model? Look for hands, teeth, letters "
        "and repeated patterns that dissolve when looked at closely, for objects that merge, light that comes from "
        "nowhere, and texture that is alike everywhere. A drawing, a rendering or a retouched photograph made by a "
        f"person is no. {_FORM}"
    ),
)
ARTIFACT = Question(
    name="artifact",
    prompt=(
        "Does this picture have a visible technical fault that was not intended: compression blocks, ringing, banding, "
        "moire, torn or shifted lines, a burnt-in interface or player, or a watermark across the subject? Blur, grain "
        f"and softness that look intended are no. {_FORM}"
    ),
)
UNSAFE = Question(
    name="unsafe",
    prompt=(
        "Does this picture show explicit nudity, sexual acts, or gore? Art, medicine and swimwear that show none of "
        f"these are no. {_FORM}"
    ),
)
