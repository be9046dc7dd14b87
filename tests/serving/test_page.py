"""The page in a real browser, served by the real application with a model of random weights."""

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import threading

import pytest
import uvicorn

from t5x_lite.serving.app import create_app
from t5x_lite.serving.served import Served
from t5x_lite.serving.settings import Settings
from tests.recommendation import films

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it is in the test extra")
expect = playwright.expect
expect.set_options(timeout=30_000)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium is found; apt-get install chromium"),
]

MARKED = "<b>Red</b> River"  # a title that is no markup
CATALOGUE = dataclasses.replace(films.FILMS, titles=(MARKED, *films.TITLES[1:]))
ID = dict(zip(CATALOGUE.titles, CATALOGUE.ids, strict=True))
KEY = "open-sesame"
SHOWN = "#ranking > [data-item]"


@functools.cache
def recommender():
    return films.recommender("token", catalogue=CATALOGUE)


@contextlib.contextmanager
def serving(*, writes, **settings):
    """The address of an application in a thread; `writes`: whether it answers and translates, too."""
    found = recommender()
    served = Served(found.engine, found, writes, writes, "1-tests", "tests")
    settings = Settings(
        model_dir="unused", max_batch=1, timeout=60, **settings
    )  # what compiles, does as it is asked for
    app = create_app(settings, served=served)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    started = threading.Event()
    startup = server.startup

    async def told_when_started(sockets=None):
        await startup(sockets)
        started.set()

    server.startup = told_when_started
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def address():
    with serving(writes=True) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    # Its sandbox does not run as root, which containers are.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """Opens windows; none may have said an error but of a status, such as a script that its policy refuses."""
    contexts, errors = [], []

    def new(width=1280, height=900, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        return page

    yield new
    for context in contexts:
        context.close()
    assert [error for error in errors if "Failed to load resource" not in error] == []


@pytest.fixture
def page(new_page, address):
    page = new_page()
    page.goto(address)
    expect(page.locator(SHOWN)).to_have_count(10)
    return page


def type_title(page, text):
    page.locator("#search").press_sequentially(text)
    expect(page.locator("#search")).to_have_attribute("aria-expanded", "true")


def add(page, *titles):
    """Adds to the history by the keyboard, and waits for the list that follows."""
    for title in titles:
        with page.expect_response("**/v1/recommend"):
            page.locator("#search").press_sequentially(title)
            page.keyboard.press("Enter")
        expect(page.locator("#history > li .name").last).to_have_text(title)
    expect(page.locator(".results")).to_have_attribute("aria-busy", "false")


def shown(page):
    """Ids of the list."""
    return [row.get_attribute("data-item") for row in page.locator(SHOWN).all()]


def listed(page):
    return page.locator("#history > li .name").all_text_contents()


# ------------------------------------------------------------------ a history


def test_adds_by_keyboard_what_is_typed(page):
    type_title(page, "blue")
    options = page.locator("#found").get_by_role("option")
    expect(options).to_have_count(5)
    expect(options.first).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowDown")
    chosen = page.locator("#search").get_attribute("aria-activedescendant")
    title = page.locator(f"#{chosen} .name").inner_text()
    assert title == options.nth(1).locator(".name").inner_text()
    page.keyboard.press("Enter")
    assert listed(page) == [title]
    expect(page.locator("#search")).to_be_focused()
    expect(page.locator("#search")).to_have_value("")
    expect(page.locator("#search")).to_have_attribute("aria-expanded", "false")


def test_enter_takes_what_is_typed_not_what_was_found_before(page):
    type_title(page, "r")
    page.locator("#search").press_sequentially("iver blu")
    page.keyboard.press("Enter")
    expect(page.locator("#history > li .name")).to_have_text("Blue River")


def test_escape_closes_the_titles_found_and_then_empties_the_field(page):
    type_title(page, "blue")
    page.keyboard.press("Escape")
    expect(page.locator("#found")).to_be_hidden()
    expect(page.locator("#search")).to_have_value("blue")
    page.keyboard.press("Escape")
    expect(page.locator("#search")).to_have_value("")


def test_lists_as_many_as_asked_for_and_none_of_the_history(page):
    titles = ["Blue River", "Gold Letter", "Pink Garden"]
    add(page, *titles)
    expected = recommender().recommend(history=titles, k=10)
    assert shown(page) == [each.item for each in expected.items]
    assert not {ID[title] for title in titles} & set(shown(page))
    expect(page.locator("#results-title")).to_have_text("Recommended")
    with page.expect_response("**/v1/recommend"):
        page.locator("#k").fill("4")
    expect(page.locator(SHOWN)).to_have_count(4)


def test_shows_scores_reasons_attributes_and_times(page):
    titles = ["Blue River", "Gold Letter", "Pink Garden"]
    add(page, *titles)
    expected = recommender().recommend(history=titles, k=10, evidence=True).items
    row = next(n for n, each in enumerate(expected) if each.evidence)
    item, reason, row = expected[row], expected[row].evidence[0], page.locator(SHOWN).nth(row)
    expect(row.locator(".log")).to_have_text(f"{item.score:+.2f}".replace("-", "−"))
    expect(row.locator(".reason").first).to_have_text(f"{reason.title} +{reason.effect:.2f}")
    number = CATALOGUE.ids.index(item.item)
    expect(row.locator(".about")).to_contain_text(CATALOGUE.attributes["year"][number][0])
    assert re.fullmatch(
        r"[\d.]+ ms \(queue [\d.]+, encode [\d.]+, decode [\d.]+\)", page.locator("#timing").inner_text()
    )


def test_history_is_ordered_and_shortened_by_keyboard(page):
    add(page, "Blue River", "Gold Letter", "Pink Garden")
    page.locator("#history > li").first.focus()
    page.keyboard.press("Alt+ArrowDown")
    assert listed(page) == ["Gold Letter", "Blue River", "Pink Garden"]
    expect(page.locator("#history > li").nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    with page.expect_response("**/v1/recommend"):
        page.keyboard.press("Delete")
    assert listed(page) == ["Gold Letter", "Blue River"]
    expect(page.locator(".results")).to_have_attribute("aria-busy", "false")
    assert shown(page) == [each.item for each in recommender().recommend(history=["Gold Letter", "Blue River"]).items]


def test_item_of_the_list_goes_into_the_history(page):
    add(page, "Blue River")
    first = page.locator(SHOWN).first
    item, title = first.get_attribute("data-item"), first.locator("h3").inner_text()
    first.get_by_role("button", name="Add to history").click()
    assert listed(page) == ["Blue River", title]
    expect(page.locator(f"#ranking > [data-item='{item}']")).to_have_count(0)


def test_of_a_known_user(page):
    page.get_by_text("A known user").click()
    page.locator("#user").fill("anna")
    expected = [each.item for each in recommender().recommend(user="anna").items]
    expect(page.locator(SHOWN).first).to_have_attribute("data-item", expected[0])
    assert shown(page) == expected
    expect(page.get_by_role("button", name="Add to history")).to_have_count(0)


# ------------------------------------------------------------------ narrower lists


def test_exclusion_ranks_anew_in_place(page):
    add(page, "Blue River")
    before = shown(page)
    page.locator(SHOWN).nth(2).get_by_role("button", name="Exclude").click()
    expect(page.locator(f"#ranking > [data-item='{before[2]}']")).to_have_count(0)
    expect(page.locator(SHOWN)).to_have_count(10)
    assert shown(page)[:9] == before[:2] + before[3:]
    focused = page.locator(SHOWN).nth(2).get_by_role("button", name="Exclude")
    expect(focused).to_be_focused()  # the next one is a key away
    page.locator("#exclude").get_by_role("button", name="Remove").click()
    expect(page.locator(f"#ranking > [data-item='{before[2]}']")).to_have_count(1)
    assert shown(page) == before


def test_filters_hold_for_all_that_is_shown(page):
    add(page, "Blue River")
    page.get_by_label("genre", exact=True).select_option("Comedy")
    page.get_by_label("year from").fill("1985")
    page.get_by_role("button", name="Add a filter").click()
    rule = page.locator(".rule")
    rule.get_by_label("Attribute").select_option("year")
    rule.get_by_label("Comparison").select_option("<")
    rule.get_by_label("Value").fill("2010")
    matching = {CATALOGUE.ids[n] for n in CATALOGUE.matching(["genre=Comedy", "year>=1985", "year<2010"])}
    expect(page.locator(SHOWN)).to_have_count(len(matching - {ID["Blue River"]}))
    assert set(shown(page)) == matching - {ID["Blue River"]}
    assert len(matching) < 10
    expect(page.locator("#notices")).to_contain_text(f"Only {len(shown(page))} of 10 items are left")
    rule.get_by_role("button", name="Remove this filter").click()
    expect(page.locator(SHOWN)).to_have_count(len(CATALOGUE.matching(["genre=Comedy", "year>=1985"])))


def test_what_is_not_of_the_model_says_so(page):
    expect(page.locator("#results-title")).to_have_text("Most popular")
    expect(page.locator("#notices")).to_contain_text("Not chosen by the model")
    expect(page.locator("#history-empty")).to_be_visible()


def test_link_shows_the_same(page, new_page):
    add(page, "Blue River", MARKED)
    page.locator("#interests").fill("a comedy & <more>")
    page.get_by_label("genre", exact=True).select_option("War")
    page.locator(SHOWN).first.get_by_role("button", name="Exclude").click()
    expect(page.locator("#exclude > li")).to_have_count(1)
    page.wait_for_load_state("networkidle")
    other = new_page()
    other.goto(page.url)
    expect(other.locator(SHOWN)).to_have_count(page.locator(SHOWN).count())
    assert shown(other) == shown(page)
    assert listed(other) == ["Blue River", MARKED]
    expect(other.locator("#interests")).to_have_value("a comedy & <more>")
    expect(other.get_by_label("genre", exact=True)).to_have_value("War")


# ------------------------------------------------------------------ what goes wrong


def test_titles_are_text_and_not_markup(page):
    type_title(page, "red riv")
    expect(page.locator("#found .name")).to_have_text(MARKED)
    page.keyboard.press("Enter")
    assert listed(page) == [MARKED]
    with page.expect_response("**/v1/recommend"):
        page.get_by_role("button", name=f"Remove {MARKED}").click()
    page.locator("#k").fill("40")
    expect(page.locator(SHOWN)).to_have_count(40)
    expect(page.locator(f"[data-item={ID[MARKED]}] h3")).to_have_text(MARKED)
    page.locator(f"[data-item={ID[MARKED]}]").get_by_role("button", name="Exclude").click()
    expect(page.locator("#exclude .name")).to_have_text(MARKED)
    assert page.locator("b:not(.reason b)").count() == 0


def test_problem_stands_beside_its_field(page):
    before = shown(page)
    page.locator("#k").fill("99")
    expect(page.locator("[data-field=k] .problem")).to_contain_text("99 is more than 50")
    expect(page.locator("#k")).to_have_attribute("aria-invalid", "true")
    assert shown(page) == before
    page.locator("#k").fill("10")
    expect(page.locator(".problem:visible")).to_have_count(0)
    page.get_by_text("A known user").click()
    page.locator("#user").fill("nobody")
    expect(page.locator("#of-user .problem")).to_contain_text("'nobody' is not among the 12")


def test_problem_stands_beside_its_filter_and_its_entry(page, address):
    page.goto(f"{address}#history=f999+Lost+Film&filters=genre%3DComedy")
    expect(page.locator("#history > li .problem")).to_contain_text("f999")
    page.goto(f"{address}#filters=genre%3DComedy&filters=colour%3Dred")
    expect(page.locator(".rule .problem")).to_contain_text("no attribute 'colour'")
    expect(page.locator("#filters .problem")).to_have_count(0)


def test_full_queue_is_waited_for(page):
    answers = iter([lambda route: route.fulfill(status=429, headers={"Retry-After": "1"}, json={"detail": "full"})])
    page.route("**/v1/recommend", lambda route: next(answers, lambda route: route.continue_())(route))
    page.locator("#k").fill("7")
    expect(page.locator(".notice.busy")).to_have_text("Full. Trying again in 1 s.")
    expect(page.locator(SHOWN)).to_have_count(7)
    expect(page.locator(".notice.busy")).to_have_count(0)


def test_late_answer_to_an_older_question_is_dropped(page):
    held = []
    page.route("**/v1/recommend", lambda route: held.append(route) if not held else route.continue_())
    page.locator("#k").fill("7")
    page.wait_for_timeout(600)
    page.locator("#k").fill("5")
    expect(page.locator(SHOWN)).to_have_count(5)
    with contextlib.suppress(playwright.Error):  # it is cancelled
        held[0].continue_()
    page.wait_for_timeout(600)
    expect(page.locator(SHOWN)).to_have_count(5)


def test_service_that_cannot_be_reached(page):
    page.route("**/v1/recommend", lambda route: route.abort())
    page.locator("#k").fill("7")
    expect(page.locator(".notice.error")).to_contain_text("cannot be reached")
    page.unroute("**/v1/recommend")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(SHOWN)).to_have_count(7)


def test_asks_for_the_key(new_page):
    with serving(writes=False, api_key=KEY) as address:
        page = new_page()
        page.goto(address)
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        dialog.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-wrong")).to_be_visible()
        dialog.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator(SHOWN)).to_have_count(10)
        expect(dialog).to_be_hidden()
        page.reload()  # it is kept as long as the tab
        expect(page.locator(SHOWN)).to_have_count(10)
        expect(page.get_by_role("tab")).to_have_count(0)  # this one only recommends


# ------------------------------------------------------------------ asking and translating


def test_answers_a_question_as_it_is_written(page):
    page.get_by_role("tab", name="Ask").click()
    expect(page.locator("#answer .empty")).to_be_visible()
    page.get_by_label("Question").fill("What is Red River?")
    page.keyboard.press("Enter")
    expected = recommender().engine.generate(["What is Red River?"])[0].text
    expect(page.locator("#answer article")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#answer article h2")).to_have_text("What is Red River?")
    assert page.locator("#answer article .text").text_content() == (expected or "(an empty answer)")
    expect(page.locator("#answer .empty")).to_be_hidden()


def test_translates_into_the_language_that_is_picked(page, address):
    page.get_by_role("tab", name="Recommend").focus()
    page.keyboard.press("ArrowLeft")  # around to the last
    expect(page.get_by_role("tab", name="Translate")).to_be_focused()
    page.get_by_label("into").select_option(label="French")
    page.get_by_label("Text").fill("Winter")
    page.get_by_role("button", name="Translate").click()
    expect(page.locator("#translate article")).to_have_attribute("aria-busy", "false")
    expected = recommender().engine.translate("Winter", "fr")
    assert page.locator("#translate article .text").text_content() == (expected or "(an empty answer)")
    expect(page.locator("#translate article .about")).to_contain_text("French · ")
    page.goto(f"{address}#tab=translate&language=ja")
    expect(page.get_by_label("into")).to_have_value("ja")


# ------------------------------------------------------------------ how it looks


def test_first_title_stays_in_sight_on_a_phone(new_page, address):
    page = new_page(width=360, height=740, has_touch=True, is_mobile=True)
    page.goto(address)
    expect(page.locator("#peek")).to_contain_text(page.locator(f"{SHOWN} h3").first.inner_text())
    page.locator("#peek").click()
    expect(page.locator(SHOWN).first).to_be_in_viewport(ratio=1)
    expect(page.locator("#peek")).to_be_hidden()


@pytest.mark.parametrize("tab", ["recommend", "answer", "translate"])
def test_nothing_is_wider_than_a_phone(new_page, address, tab):
    page = new_page(width=360, height=740, has_touch=True, is_mobile=True)
    titles = "&".join(f"history={ID[title]}+{'W' * 60}" for title in films.TITLES[1:4])
    page.goto(f"{address}#tab={tab}&{titles}&filters=year%3E1990&exclude=f120+{'W' * 60}")
    expect(page.get_by_role("tabpanel")).to_be_visible()
    if tab == "recommend":
        expect(page.locator(SHOWN)).to_have_count(10)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_dark_is_dark(new_page, address):
    def lightness(scheme):
        page = new_page(color_scheme=scheme)
        page.goto(address)
        return sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))))

    assert lightness("dark") < 100 < 600 < lightness("light")


@pytest.mark.parametrize("history", [[], ["Blue River", "Gold Letter"]], ids=["popular", "history"])
def test_nothing_jumps_while_it_loads(new_page, address, history):
    page = new_page()
    page.add_init_script(
        "window.shifts = 0; new PerformanceObserver(list => list.getEntries().forEach(e => window.shifts += e.value))"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    page.goto(f"{address}#" + "&".join(f"history={ID[title]}+{title}" for title in history))
    expect(page.locator(SHOWN)).to_have_count(10)
    page.wait_for_load_state("networkidle")
    assert page.evaluate("window.shifts") < 0.01


def test_nothing_moves_where_that_is_wished(new_page, address):
    page = new_page(reduced_motion="reduce")
    page.goto(address)
    expect(page.locator(SHOWN)).to_have_count(10)
    page.evaluate("window.animated = 0; Element.prototype.animate = () => window.animated++; 0")
    page.locator(SHOWN).first.get_by_role("button", name="Exclude").click()
    expect(page.locator("#exclude > li")).to_have_count(1)
    expect(page.locator(".results")).to_have_attribute("aria-busy", "false")
    assert page.evaluate("window.animated") == 0
