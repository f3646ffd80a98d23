"""Reads the page of `mgsd serve` the way a screen reader and a keyboard do.

    mgsd serve --model STUDENT --teacher TEACHER --port 8000
    python docs/check_page.py http://127.0.0.1:8000/ [--chromium /usr/bin/chromium]

Checks that every control has a role and a name, that Tab reaches all of them in their order and nothing else, that a
board can be made, drawn, asked about and walked without a mouse, and that what comes of it is said in live regions that
were there before. With axe-playwright-python installed its rules are run too, light, dark and narrow. Prints the
accessibility tree at the end and leaves with an error when a check fails.

Needs: pip install playwright (and axe-playwright-python); a Chromium, or `playwright install chromium`
"""

import argparse
import sys

from playwright.sync_api import sync_playwright

try:
    from axe_playwright_python.sync_playwright import Axe
except ImportError:
    Axe = None

CONTROLS = {
    "button", "checkbox", "combobox", "gridcell", "grid", "link", "radio", "searchbox", "slider", "spinbutton",
    "switch", "tab", "textbox", "DisclosureTriangle", "group", "img", "image", "dialog", "region", "table",
}

# Notes what live regions say. A region counts only if it was there and shown before it changed.
LISTEN = """() => {
  window.said = [];
  const live = "[role=status], [role=log], [role=alert], [aria-live]:not([aria-live=off])";
  const known = new Set(document.querySelectorAll(live));
  const note = (region) => {
    if (!known.has(region) || !region.checkVisibility({ visibilityProperty: true })) return;
    const text = region.textContent.trim();
    if (text && window.said.at(-1) !== text) window.said.push(text);
  };
  for (const region of known) {
    new MutationObserver(() => note(region)).observe(region, { childList: true, characterData: true, subtree: true });
  }
}"""

FOCUSED = """() => {
  const e = document.activeElement;
  if (!e || e === document.body) return null;
  return [e.tagName.toLowerCase(), e.id || e.name || e.dataset.cell || e.textContent.trim().slice(0, 40)].join(" ");
}"""

# What Tab should reach: of radio buttons with one name the chosen one, of the board's cells the current one.
REACHABLE = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")]
  .filter((e) => e.tabIndex >= 0 && !e.disabled && e.checkVisibility({ visibilityProperty: true }))
  .filter((e) => e.type !== "radio" || e.checked)
  .map((e) => [e.tagName.toLowerCase(), e.id || e.name || e.dataset.cell || e.textContent.trim().slice(0, 40)].join(" "))"""

failed = []


def check(what, right, found=""):
    print("ok   " if right else "FAIL ", what, "" if right else found, sep="")
    if not right:
        failed.append(what)


def names(page, context):
    """Every control of the accessibility tree has a name."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in nodes if not n.get("ignored") and n.get("role", {}).get("value") in CONTROLS]
    nameless = [n["role"]["value"] for n in controls if not n.get("name", {}).get("value", "").strip()]
    # A disclosure is a group around its summary, which has the name.
    nameless = [role for role in nameless if role != "group"]
    focusable = [
        n for n in nodes
        if not n.get("ignored") and any(p["name"] == "focusable" and p["value"]["value"] for p in n.get("properties", []))
        and n["role"]["value"] != "RootWebArea"
    ]
    bare = [n["role"]["value"] for n in focusable if not n.get("name", {}).get("value", "").strip()]
    roleless = [n for n in focusable if n["role"]["value"] in ("generic", "none", "")]
    check(f"{context}: {len(controls)} controls and {len(focusable)} that take the focus have a name", not nameless and not bare,
          f": {nameless} {bare}")
    check(f"{context}: what takes the focus has a role", not roleless, f": {roleless}")


def tab_order(page, context):
    page.evaluate("() => { document.activeElement.blur(); getSelection().removeAllRanges(); scrollTo(0, 0); }")
    page.locator("h1").click()
    wanted = page.evaluate(REACHABLE)
    found = []
    for _ in range(len(wanted) + 5):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        if at is None or (found and at == found[0]):
            break
        found.append(at)
    # The click put the focus behind the skip link, so the walk begins there and comes round.
    missing = [w for w in wanted if w not in found and w != wanted[0]]
    extra = [f for f in found if f not in wanted]
    order = [w for w in wanted if w in found]
    check(f"{context}: Tab reaches {len(found)} controls in their order", not missing and not extra and found == order,
          f": missing {missing}, extra {extra}, order {found} against {order}")


def tab_to(page, selector):
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(s) => document.activeElement.matches(s)", selector):
            return
    raise SystemExit(f"Tab never reaches {selector}")


def heard(page, words, seconds=20):
    """Whether a live region said a text that holds all words since the last time."""
    for _ in range(int(seconds * 20)):
        said = page.evaluate("() => window.said")
        if any(all(word in text for word in words) for text in said):
            return True
        page.wait_for_timeout(50)
    return False


def forget(page):
    page.evaluate("() => { window.said = []; }")


def axe(page, context):
    if Axe is None:
        return
    result = Axe().run(page).response["violations"]
    told = [f"{v['impact']} {v['id']}: {v['nodes'][0]['target']}" for v in result]
    check(f"{context}: axe finds nothing", not told, f": {told}")


def by_keyboard(page):
    """Makes, draws, asks and walks; returns when the walk has ended."""
    forget(page)
    tab_to(page, "#seed")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    check("a board made by Enter is announced", heard(page, ["shortest plan"]))
    forget(page)
    tab_to(page, "[role=gridcell]")
    page.keyboard.press("End")
    label = page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    check("the arrows' cell says its place and what is there", "row 0, column 3" in (label or ""), f": {label}")
    page.keyboard.press("h")
    page.wait_for_function("() => document.activeElement.getAttribute('aria-label').includes('hole')")
    check("a hole drawn by its letter is announced with the new plan", heard(page, ["plan"]))
    forget(page)
    tab_to(page, "#ask button[type=submit]")
    page.keyboard.press("Enter")
    check("that the model answers is announced", heard(page, ["is answering"]))
    page.wait_for_function("() => /tokens in/.test(document.getElementById('answer-status').textContent)", timeout=60000)
    answer = page.locator("#answer").text_content().strip()
    check("the end of the answer is announced", heard(page, ["tokens in"]))
    check("the answer itself is announced", heard(page, [answer[:40]]), f": {answer[:40]!r} in {page.evaluate('() => said')}")
    if page.locator("#walk").is_visible():
        check("how the plan ends is announced", heard(page, ["aim"], 10) or heard(page, ["the plan"], 1) or heard(page, ["no plan"], 1),
              f": {page.evaluate('() => said')}")
    forget(page)
    tab_to(page, "#solve")
    page.keyboard.press("Enter")
    check("a plan of one's own is walked to its end and that is announced", heard(page, ["aim is reached by a shortest plan"], 20),
          f": {page.evaluate('() => said')}")
    forget(page)
    tab_to(page, "#step")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    check("single steps are announced", heard(page, ["Step 1"]))
    slider = page.locator("#step").evaluate("(e) => e.getAttribute('aria-valuetext') ?? e.value")
    check("the slider says of how many steps it is one", "of" in slider, f": {slider}")
    forget(page)
    tab_to(page, "input[name=kind]")
    page.keyboard.press("ArrowRight")
    tab_to(page, "#ask button[type=submit]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#facts li", timeout=60000)
    check("how much of what is stated is right is announced", heard(page, ["stated facts are right"]), f": {page.evaluate('() => said')}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--chromium")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium)
        page = browser.new_page()
        messages = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.emulate_media(reduced_motion="no-preference")
        page.goto(args.url)
        page.wait_for_selector("[role=gridcell]")
        page.evaluate(LISTEN)
        names(page, "at first")
        tab_order(page, "at first")
        by_keyboard(page)
        names(page, "with an answer")
        tab_order(page, "with an answer")
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            axe(page, theme)
        page.set_viewport_size({"width": 400, "height": 800})
        axe(page, "narrow")
        for task in ("maze", "minibehaviour"):
            page.select_option("#task", task)
            page.wait_for_function("(t) => document.querySelector('#keys').textContent.includes(t === 'maze' ? 'wall' : 'Enter')", arg=task)
            names(page, task)
            axe(page, task)
        check("nothing on the console", not messages, f": {messages}")
        print(page.locator("body").aria_snapshot())
        browser.close()
    if failed:
        sys.exit(f"{len(failed)} checks failed")


main()
