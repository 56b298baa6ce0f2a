//! The demonstration page as a browser shows it.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod common;
#[path = "../examples/page/demo.rs"]
mod demo;

use std::fs;
use std::path::Path;
use std::process::Command;

/// Loads the page in frames of two widths and writes down what is wrong with it.
const WRAPPER: &str = r##"<!DOCTYPE html>
<title>test</title>
<body><iframe src="index.html" width="1280" height="900"></iframe>
<iframe src="index.html" width="390" height="900"></iframe>
<pre id="found"></pre>
<script>
const found = [];
const channels = (text) => text.match(/[\d.]+/g).map(Number);
const light = (rgb) => {
  const [r, g, b] = rgb.slice(0, 3).map((it) => it / 255)
    .map((it) => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const opaque = (rgb) => rgb.length < 4 || rgb[3] > 0;
function ground(view, it) {
  for (; it; it = it.parentElement) {
    const rgb = channels(view.getComputedStyle(it).backgroundColor);
    if (opaque(rgb)) return rgb;
  }
  return [255, 255, 255];
}
function contrast(view, it) {
  const style = view.getComputedStyle(it);
  const ink = channels(it instanceof view.SVGElement ? style.fill : style.color);
  const both = [light(ink), light(ground(view, it))];
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}
function look(view) {
  const page = view.document;
  const say = (text) => found.push(`${view.innerWidth} px: ${text}`);
  const wide = (when) => {
    const width = page.documentElement.scrollWidth;
    if (width > view.innerWidth) say(`${width} px wide ${when}`);
  };
  wide("as it opens");
  const folds = [...page.querySelectorAll("details")];
  folds.forEach((it) => { it.open = true; });
  wide("with everything open");
  for (const link of page.querySelectorAll("a[href^='#']")) {
    if (!page.getElementById(link.hash.slice(1))) say(`${link.hash} leads nowhere`);
  }
  for (const image of page.images) {
    if (!image.complete || !image.naturalWidth) say(`no picture: ${image.alt}`);
    if (!image.alt) say("a picture without text");
  }
  const levels = [...page.querySelectorAll("h1,h2,h3,h4")].map((it) => +it.tagName[1]);
  if (levels[0] !== 1 || levels.slice(1).some((it) => it !== 2)) say(`headings ${levels}`);
  for (const it of page.querySelectorAll("body *")) {
    const own = [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (own && contrast(view, it) < 4.5) say(`contrast ${contrast(view, it)}: ${it.outerHTML}`);
  }
  const plots = [...page.querySelectorAll("svg.plot")]
    .filter((it) => it.getBoundingClientRect().width);
  for (const plot of plots) {
    const { left, right } = plot.getBoundingClientRect();
    for (const text of plot.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.left < left - 0.5 || box.right > right + 0.5) say(`cut off: ${text.textContent}`);
      if (box.height < 10) say(`too small: ${text.textContent}`);
    }
  }
  const body = view.getComputedStyle(page.body).backgroundColor;
  return `${view.innerWidth} px: ${plots.length} plots, ${page.images.length} pictures, ground ${body}`;
}
window.addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")];
  const seen = frames.map((it) => look(it.contentWindow));
  document.getElementById("found").textContent = JSON.stringify({ seen, found });
});
</script>
"##;

fn browser() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok())
}

/// What the wrapper found, and what the browser complained of.
fn look(dir: &Path, dark: bool) -> (serde_json::Value, String) {
    let browser = browser().expect("install chromium");
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .args(["--enable-logging=stderr", "--allow-file-access-from-files"])
        .arg(format!(
            "--blink-settings=preferredColorScheme={}",
            u8::from(!dark)
        ))
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(dir.join("wrapper.html"))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<&str> = errors.lines().filter(|it| it.contains("CONSOLE")).collect();
    let found = dom
        .split_once("<pre id=\"found\">")
        .and_then(|it| it.1.split_once("</pre>"))
        .unwrap_or_else(|| panic!("nothing was found:\n{dom}\n{errors}"));
    let found = serde_json::from_str(found.0).unwrap();
    (found, complaints.join("\n"))
}

#[test]
#[ignore = "needs chromium; run by `cargo test -p theriac-report --test browser -- --ignored`"]
fn the_page_fits_and_can_be_read_on_both_widths_and_grounds() {
    let dir = tempfile::tempdir().unwrap();
    demo::page().write(dir.path()).unwrap();
    fs::write(dir.path().join("wrapper.html"), WRAPPER).unwrap();
    for (dark, ground) in [(false, "rgb(255, 255, 255)"), (true, "rgb(21, 24, 27)")] {
        let (found, complaints) = look(dir.path(), dark);
        assert_eq!(complaints, "");
        assert_eq!(found["found"], serde_json::json!([]));
        let seen =
            [1280, 390].map(|width| format!("{width} px: 2 plots, 10 pictures, ground {ground}"));
        assert_eq!(found["seen"], serde_json::json!(seen));
    }
}

#[test]
#[ignore = "needs chromium; run by `cargo test -p theriac-report --test browser -- --ignored`"]
fn words_without_end_do_not_widen_the_page() {
    let dir = tempfile::tempdir().unwrap();
    common::filled(&"endless".repeat(40))
        .write(dir.path())
        .unwrap();
    fs::write(dir.path().join("wrapper.html"), WRAPPER).unwrap();
    let (found, complaints) = look(dir.path(), false);
    assert_eq!(complaints, "");
    assert_eq!(found["found"], serde_json::json!([]));
}
