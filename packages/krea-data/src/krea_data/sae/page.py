"""Features of a sparse autoencoder as one page to look through: name, words, and the pictures that have it most."""

from collections.abc import Callable, Sequence
from html import escape
from string import Template

from PIL import Image

from krea_data.sae.names import Feature
from krea_data.thumbnails import thumbnail

__all__ = ["page"]

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #222 }
  form { position: sticky; top: 0; background: #fffd; padding: .7rem 0; display: flex; gap: 1rem; flex-wrap: wrap }
  input, select { font: inherit; padding: .2rem .4rem }
  main { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem }
  article { border: 1px solid #ddd; border-radius: .4rem; padding: .8rem }
  h2 { font-size: 1rem; margin: 0 } h2 small { color: #666; font-weight: normal }
  p { margin: .2rem 0 .6rem; color: #555; font-size: .85rem }
  figure { display: grid; grid-template-columns: repeat(4, 1fr); gap: .3rem; margin: 0 }
  img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #f6f6f6 }
  [hidden] { display: none }
</style>
<h1>$title</h1>
<p>$summary</p>
<form onsubmit="return false">
  <label>Find <input id="find" type="search" placeholder="word or number"></label>
  <label>Show <select id="which"><option value="">all<option value="named">named<option value="bare">without a name
  </select></label>
  <label>Sort by <select id="sort"><option value="share">how many pictures have it<option value="strongest">strength
  <option value="name">name</select></label>
  <output id="count"></output>
</form>
<main>
$features
</main>
<script>
  const main = document.querySelector("main"), all = [...main.children];
  const [find, which, sort, count] = ["find", "which", "sort", "count"].map(id => document.getElementById(id));
  function show() {
    const word = find.value.trim().toLowerCase(), key = sort.value;
    const byName = (a, b) => a.dataset.name.localeCompare(b.dataset.name);
    const order = key === "name" ? byName : (a, b) => b.dataset[key] - a.dataset[key];
    main.append(...[...all].sort(order));
    for (const one of all)
      one.hidden = !one.dataset.words.includes(word)
        || (which.value === "named" && !one.dataset.name) || (which.value === "bare" && !!one.dataset.name);
    count.value = `$${all.filter(one => !one.hidden).length} of $${all.length}`;
  }
  for (const one of [find, which, sort]) one.addEventListener("input", show);
  show();
</script>
</html>
""")
_FEATURE = Template("""<article data-name="$name" data-words="$search" data-share="$share" data-strongest="$strongest">
<h2>$shown <small>feature $latent</small></h2>
<p>$percent of the pictures$words</p>
<figure>$pictures</figure>
</article>""")


def page(
    features: Sequence[Feature],
    picture: Callable[[int], Image.Image],
    caption: Callable[[int], str] = str,
    *,
    title: str = "Features",
    summary: str = "",
    pictures: int = 8,
    side_px: int = 96,
) -> str:
    """The page as HTML that needs nothing else. `picture` and `caption` give a row's picture and what it shows."""
    cards = [_card(feature, picture, caption, pictures, side_px) for feature in features]
    return _PAGE.substitute(title=escape(title), summary=escape(summary), features="\n".join(cards))


def _card(
    feature: Feature, picture: Callable[[int], Image.Image], caption: Callable[[int], str], pictures: int, side_px: int
) -> str:
    words = ", ".join(
        f"{word} ({pure:.0%}, {lift:.0f} times)" for word, (pure, lift) in list(feature.words.items())[:5]
    )
    return _FEATURE.substitute(
        name=escape(feature.name),
        shown=escape(feature.name) or "<i>no name</i>",
        search=escape(f"{feature.name} {' '.join(feature.words)} {feature.latent}".lower()),
        latent=feature.latent,
        share=feature.share,
        strongest=feature.strongest,
        percent=f"{feature.share:.1%}",
        words=f"; {escape(words)}" if words else "",
        pictures="".join(thumbnail(picture(row), caption(row), side_px) for row in feature.top[:pictures]),
    )
