//! The HTML report in a real browser: what is rendered, in light and dark, wide and narrow.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::fixture::{Namespace, PODWEIR, RESOLV, V4, V6};

/// Measures the page once it is laid out, and leaves the result in it.
const PROBE: &str = r#"<script>
const luminance = colour => {
  const [r, g, b] = colour.match(/[\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
  }
  return 'rgb(255, 255, 255)';
};
const contrast = element => {
  const [a, b] = [luminance(getComputedStyle(element).color), luminance(behind(element))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
const all = selector => [...document.querySelectorAll(selector)];
const visible = all('h1,h2,h3,p,dt,dd,li,td,th,code,summary,.badge');
const overflowing = [];
for (const group of all('svg.podweir g')) {
  const box = group.querySelector('rect.box').getBBox();
  for (const text of group.querySelectorAll('text')) {
    const t = text.getBBox();
    if (t.x < box.x || t.x + t.width > box.x + box.width || t.y < box.y || t.y + t.height > box.y + box.height)
      overflowing.push(text.textContent);
  }
}
const overlapping = [];
const drawings = all('svg.podweir').map(drawing => [...drawing.querySelectorAll('rect.box')].map(b => b.getBBox()));
const boxes = drawings.flat();
drawings.forEach(boxes => boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
  if (a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height) overlapping.push([a.x, b.x]);
})));
const result = document.createElement('pre');
result.id = 'measured';
result.textContent = JSON.stringify({
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  paper: getComputedStyle(document.body).backgroundColor,
  contrast: Math.min(...visible.map(contrast)),
  headings: all('h2').map(h => h.textContent),
  findings: all('#escapes article, #findings article').map(a => a.querySelector('h3 code').textContent),
  arrows: all('svg.podweir path.high, svg.podweir path.medium, svg.podweir path.low').length,
  boxes: boxes.length,
  overflowing, overlapping,
  loaded: performance.getEntriesByType('resource').length,
  broken: all('a[href^="\#"]').filter(a => !document.querySelector(a.getAttribute('href'))).length,
  unreachable: all('.scroll').filter(e => e.tabIndex !== 0 || !e.getAttribute('aria-label')).length,
  counted: all('#counters tbody tr').length,
});
document.body.append(result);
</script>"#;

/// What the browser made of a page.
fn measured(directory: &Path, page: &str, width: u32, dark: bool) -> Value {
    // Reports forbid scripts; the measuring one is let in.
    let csp = "default-src 'none'; style-src 'unsafe-inline'";
    assert!(page.contains(csp));
    let page = page.replace(csp, "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'");
    let path = directory.join(format!("page-{width}-{dark}.html"));
    std::fs::write(&path, page.replace("</body>", &format!("{PROBE}</body>"))).unwrap();
    let scheme = format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 });
    let output = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", directory.join(format!("profile-{width}-{dark}")).display()))
        .arg(format!("--window-size={width},900"))
        .arg(scheme)
        .arg(format!("file://{}", path.display()))
        .output()
        .expect("the report is looked at with chromium");
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let start = dom.find("<pre id=\"measured\">").unwrap_or_else(|| {
        panic!("nothing measured: {}\n{}", String::from_utf8_lossy(&output.stderr), &dom[..dom.len().min(500)])
    });
    let text = &dom[start + "<pre id=\"measured\">".len()..];
    let text = &text[..text.find("</pre>").unwrap()];
    serde_json::from_str(&text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")).unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

/// A report of a pod that has about everything, with drift and counters.
fn report(namespace: &Namespace) -> String {
    let options = [
        "-b",
        "*",
        "-i",
        "*",
        "-d",
        "15020,15021,15090",
        "-o",
        "3306,5432,6379,8000-8100",
        "-x",
        "10.0.0.0/8,fd00::/8",
        "-m",
        "TPROXY",
        "--redirect-dns",
        "--drop-invalid",
        "-c",
        "net1",
    ];
    namespace.ok(&[&["init"], &options[..]].concat());
    let rule = "insert rule inet istio-proxy-nat output tcp dport 9999 accept comment \"<b>not ours</b>\"";
    assert!(namespace.feed("nft", &["-f", "-"], &[], rule).status.success());
    namespace.print(PODWEIR, &[&["audit", "--live", "--format", "html", "--"], &options[..]].concat())
}

/// Nothing is cut off, on top of another, too faint (WCAG AA), out of reach or from elsewhere.
fn is_readable(seen: &Value, at: &str) {
    assert_eq!((texts(&seen["overflowing"]).len(), seen["overlapping"].as_array().unwrap().len()), (0, 0), "{at}");
    assert!(seen["contrast"].as_f64() >= Some(4.5), "{at}");
    for nothing in ["broken", "unreachable", "loaded"] {
        assert_eq!(seen[nothing], 0, "{nothing}: {at}");
    }
    assert!(seen["wide"].as_i64() <= Some(0), "{at}");
}

#[test]
fn a_browser_shows_the_page_of_many_workloads() {
    let namespace = Namespace::bare("");
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/manifests");
    let output = Command::new(PODWEIR).args(["audit", "--manifests", manifests, "--format", "html"]).output().unwrap();
    // However long the name of what was looked at is.
    let page = String::from_utf8(output.stdout).unwrap().replace(manifests, &format!("/{}", "long".repeat(40)));
    for (width, dark) in [(1400, false), (1400, true), (420, false)] {
        let seen = measured(namespace.directory(), &page, width, dark);
        let at = format!("{width} wide, dark {dark}: {seen:#}");
        let parts = ["Findings", "Who is intercepted, and who is not", "Namespaces", "Distinct interceptions"];
        assert_eq!(texts(&seen["headings"]), parts, "{at}");
        assert!(texts(&seen["findings"]).contains(&"outbound-excluded-port 3306"), "{at}");
        assert!(seen["boxes"].as_u64() >= Some(10), "{at}");
        is_readable(&seen, &at);
    }
}

#[test]
fn a_browser_shows_the_report() {
    let namespace = Namespace::with(&[V4, V6], RESOLV);
    let page = report(&namespace);
    let directory: PathBuf = namespace.directory().to_owned();
    let mut papers = Vec::new();
    for (width, dark) in [(1400, false), (1400, true), (420, false)] {
        let seen = measured(&directory, &page, width, dark);
        let at = format!("{width} wide, dark {dark}: {seen:#}");
        assert_eq!(texts(&seen["headings"]), ["Which way packets go", "Escapes", "Lints", "Drift", "Counters"], "{at}");
        let findings = texts(&seen["findings"]);
        assert_eq!(findings[0], "outbound-foreign-rule", "{at}");
        for id in ["outbound-excluded-port", "outbound-excluded-range", "inbound-excluded-interface", "outbound-quic"] {
            assert!(findings.contains(&id), "{id}: {at}");
        }
        assert!(seen["arrows"].as_u64() >= Some(6) && seen["boxes"].as_u64() >= Some(10), "{at}");
        assert!(seen["counted"].as_u64() > Some(20), "{at}");
        is_readable(&seen, &at);
        papers.push(seen["paper"].clone());
    }
    assert_eq!(papers[0], papers[2]);
    assert_ne!(papers[0], papers[1], "dark is another colour");
    assert!(page.contains("&lt;b&gt;not ours&lt;/b&gt;") && !page.contains("<b>not ours"));
}
