"""Pages from templates: values and figures come in, one HTML file that needs no network goes out.

Whatever comes from a run or a corpus is text to the template, which escapes it, or an array or escaped
text in Bokeh's own JSON. Beyond that the page's content security policy forbids every request and every
script but its own, which it names by their SHA-256: what slipped through would still be inert.
"""

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    from panthalassa.report.figures import Plots

HERE = Path(__file__).parent


def fill(template: str, plots: "Plots", **values: object) -> str:
    """A template of this package with its values, its figures (`divs`), and all that draws them."""
    environment = Environment(
        loader=PackageLoader("panthalassa", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawing, divs = _embedded(plots) if plots else ([], {})
    scripts = [*drawing, (HERE / "page.js").read_text()]
    return environment.get_template(template).render(
        divs={name: Markup(div) for name, div in divs.items()},
        style=Markup((HERE / "page.css").read_text()),
        scripts=[Markup(part) for part in scripts],
        policy=" ".join(f"'sha256-{_sha256(part)}'" for part in scripts),
        **values,
    )


def _embedded(plots: "Plots") -> tuple[list[str], dict[str, str]]:
    """The scripts that draw figures, and the elements that they draw in."""
    from bokeh.embed import components  # takes a second, and a page may have no figure
    from bokeh.resources import Resources

    from panthalassa.report.figures import THEME

    script, divs = components(plots, wrap_script=False, theme=THEME)
    return [Resources(mode="inline", components=["bokeh"]).js_raw[0], script], divs


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
