//! A drill as one self-contained HTML page: inline SVG and CSS, nothing fetched, light and dark. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::proof::{Bar, Proof};

/// Plot area and margins, SVG units.
const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 30.0;
/// More bars than this are joined, so that a drill of 15 minutes still draws in a moment.
const BARS_MAX: usize = 600;
/// Marks on the time axis, at most.
const TICKS_MAX: f64 = 12.0;
/// Colours for clusters, told apart by every common kind of colour vision; defined in the style sheet.
const COLOURS: usize = 6;

/// The page.
pub(super) fn html(proof: &Proof) -> String {
    let clusters = clusters(proof);
    let title = format!("Drill {}: {} of {}", proof.id, proof.kind, proof.target);
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{title}</h1>\n<p class=\"sub\">{sub}</p>\n\
         <p class=\"verdict {verdict}\"><strong>{verdict}</strong>{why}</p>\n",
        title = escape(&title),
        sub = escape(&subtitle(proof)),
        verdict = escape(proof.verdict),
        why = if proof.why.is_empty() {
            String::new()
        } else {
            format!("<span>{}</span>", escape(&proof.why))
        },
    );
    page.push_str("<dl>\n");
    for (name, value) in proof.figures() {
        let (number, note) = value.split_once(" (").unwrap_or((value.as_str(), ""));
        let note = note.trim_end_matches(')');
        let note = if note.is_empty() {
            String::new()
        } else {
            format!("<small>{}</small>", escape(note))
        };
        let _ = writeln!(
            page,
            "<div><dt>{}</dt><dd>{}{note}</dd></div>",
            escape(name),
            escape(number)
        );
    }
    page.push_str("</dl>\n<h2>Requests by who served them</h2>\n");
    page.push_str(&legend(&clusters));
    page.push_str(&chart(proof, &clusters));
    page.push_str("<h2>What was done</h2>\n<ol>\n");
    for step in &proof.steps {
        let _ = writeln!(
            page,
            "<li><time>{}</time><span>{}</span></li>",
            escape(&seconds(step.at_ms)),
            escape(&step.what)
        );
    }
    page.push_str("</ol>\n");
    if !proof.failures.is_empty() {
        page.push_str("<h2>Why requests failed</h2>\n<ul>\n");
        for (reason, count) in &proof.failures {
            let _ = writeln!(page, "<li><strong>{count}</strong> {}</li>", escape(reason));
        }
        page.push_str("</ul>\n");
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn subtitle(proof: &Proof) -> String {
    format!(
        "{} from {} to {}, {} per second, each a new connection ({})",
        if proof.real {
            "Real failure. Traffic"
        } else {
            "Rehearsed failure. Traffic"
        },
        proof.from,
        proof.service,
        proof.rate_per_second,
        proof.request
    )
}

/// Every cluster that served, the target first.
fn clusters(proof: &Proof) -> Vec<String> {
    let served: BTreeSet<&String> = proof.timeline.iter().flat_map(|bar| bar.served.keys()).collect();
    let mut clusters = vec![proof.target.clone()];
    clusters.extend(
        served
            .into_iter()
            .filter(|cluster| **cluster != proof.target)
            .cloned(),
    );
    clusters
}

/// Style class of the cluster at `place`.
fn colour(place: usize) -> String {
    format!("c{}", place % COLOURS)
}

fn legend(clusters: &[String]) -> String {
    let mut legend = String::from("<p class=\"legend\">");
    for (place, cluster) in clusters.iter().enumerate() {
        let note = if place == 0 { " (target)" } else { "" };
        let _ = write!(
            legend,
            "<span><i class=\"{}\"></i>{}{note}</span>",
            colour(place),
            escape(cluster)
        );
    }
    legend.push_str("<span><i class=\"failed\"></i>failed</span></p>\n");
    legend
}

/// Neighbouring bars joined, so that at most [`BARS_MAX`] remain; with the number that were joined into one.
fn joined(timeline: &[Bar]) -> (Vec<Bar>, usize) {
    let group = timeline.len().div_ceil(BARS_MAX).max(1);
    let join = |bars: &[Bar]| {
        let mut joined = Bar {
            at_ms: bars.first().map_or(0, |bar| bar.at_ms),
            served: Default::default(),
            failed: 0,
        };
        for bar in bars {
            joined.failed += bar.failed;
            for (cluster, count) in &bar.served {
                *joined.served.entry(cluster.clone()).or_default() += count;
            }
        }
        joined
    };
    (timeline.chunks(group).map(join).collect(), group)
}

/// The plane of the chart: time to the right, requests upwards.
struct Plane {
    end_ms: f64,
    most: f64,
}

impl Plane {
    fn x(&self, ms: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (ms / self.end_ms).clamp(0.0, 1.0)
    }

    fn y(&self, count: f64) -> f64 {
        TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (count / self.most).clamp(0.0, 1.0))
    }
}

fn chart(proof: &Proof, clusters: &[String]) -> String {
    let (bars, group) = joined(&proof.timeline);
    let width_ms = (proof.bucket_ms * u64::try_from(group).unwrap_or(1)) as f64;
    let count = |bar: &Bar| bar.served.values().sum::<u32>() + bar.failed;
    let last = bars.last().map_or(0.0, |bar| bar.at_ms as f64 + width_ms);
    let end = proof.steps.last().map_or(0.0, |step| step.at_ms);
    let plane = Plane {
        end_ms: last.max(end).max(width_ms),
        most: f64::from(bars.iter().map(count).max().unwrap_or(0).max(1)),
    };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"requests per {width_ms:.0} ms by serving cluster\">\n"
    );
    svg.push_str(&axes(&plane, width_ms));
    svg.push_str(&failure(proof, &plane));
    for bar in &bars {
        svg.push_str(&stack(bar, clusters, &plane, width_ms));
    }
    svg.push_str(&marks(proof, &plane));
    svg.push_str("</svg>\n");
    svg
}

/// Lines across for requests, marks below for seconds.
fn axes(plane: &Plane, width_ms: f64) -> String {
    let mut svg = String::new();
    let right = WIDTH - RIGHT;
    for part in [0.0, 0.5, 1.0] {
        let (y, value) = (plane.y(plane.most * part), plane.most * part);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>"
        );
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" class=\"end\">{value:.0}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"12\">requests per {width_ms:.0} ms</text>",
        0.0
    );
    let steps = [
        500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 30_000.0, 60_000.0, 120_000.0,
    ];
    let step = steps
        .into_iter()
        .find(|step| plane.end_ms / step <= TICKS_MAX)
        .unwrap_or(120_000.0);
    let mut at = 0.0;
    while at <= plane.end_ms {
        let (x, y) = (plane.x(at), HEIGHT - BOTTOM);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{y}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>",
            y + 5.0
        );
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" class=\"mid\">{}</text>",
            y + 19.0,
            seconds(at)
        );
        at += step;
    }
    svg
}

/// The time of the failure, shaded.
fn failure(proof: &Proof, plane: &Plane) -> String {
    let (from, to) = (plane.x(proof.injected_ms), plane.x(proof.restored_ms));
    let height = HEIGHT - TOP - BOTTOM;
    format!(
        "<rect class=\"failure\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{height}\"/>\n",
        (to - from).max(0.0)
    )
}

/// Injection and recovery, marked over the bars.
fn marks(proof: &Proof, plane: &Plane) -> String {
    let mut svg = String::new();
    let bottom = HEIGHT - BOTTOM;
    for (at, what) in [(proof.injected_ms, "failure"), (proof.restored_ms, "recovery")] {
        let x = plane.x(at);
        let _ = writeln!(
            svg,
            "<line class=\"mark\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom}\"/><text class=\"mid strong\" x=\"{x:.1}\" y=\"{:.1}\">{what} {}</text>",
            TOP - 6.0,
            TOP - 10.0,
            seconds(at)
        );
    }
    svg
}

/// One bar: who served, the target at the bottom, failures on top.
fn stack(bar: &Bar, clusters: &[String], plane: &Plane, width_ms: f64) -> String {
    let mut parts: Vec<(String, u32, &str)> = Vec::new();
    for (place, cluster) in clusters.iter().enumerate() {
        if let Some(count) = bar.served.get(cluster) {
            parts.push((colour(place), *count, cluster));
        }
    }
    if bar.failed > 0 {
        parts.push(("failed".to_owned(), bar.failed, "failed"));
    }
    if parts.is_empty() {
        return String::new();
    }
    let at = bar.at_ms as f64;
    let told: Vec<String> = parts
        .iter()
        .map(|(_, count, who)| format!("{who}: {count}"))
        .collect();
    let mut svg = format!(
        "<g><title>{} {}</title>",
        escape(&seconds(at)),
        escape(&told.join(", "))
    );
    let (x, width) = (plane.x(at), (plane.x(at + width_ms) - plane.x(at) - 0.5).max(0.5));
    let mut below = 0.0;
    for (class, count, _) in &parts {
        let (bottom, top) = (plane.y(below), plane.y(below + f64::from(*count)));
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{x:.2}\" y=\"{top:.2}\" width=\"{width:.2}\" height=\"{:.2}\"/>",
            bottom - top
        );
        below += f64::from(*count);
    }
    svg.push_str("</g>\n");
    svg
}

fn seconds(ms: f64) -> String {
    let text = format!("{:.2}", ms / 1000.0);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} s")
}

/// Text as HTML content and as a quoted attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

const STYLE: &str = "
:root{color-scheme:light dark;--bg:#fbfaf7;--card:#fff;--ink:#1c2024;--soft:#5d6670;--line:#dcdfe3;--good:#1a7f4b;--bad:#c62f2f;--warn:#9a6400;--shade:rgba(198,47,47,.09);
--c0:#3b6fb6;--c1:#e0912f;--c2:#3f9d8f;--c3:#9467bd;--c4:#8c7a53;--c5:#d478a8}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1d2125;--ink:#e8eaed;--soft:#9aa4ae;--line:#343a41;--good:#4cc38a;--bad:#ff6b63;--warn:#e2a93b;--shade:rgba(255,107,99,.12);
--c0:#6ea0e6;--c1:#f0ae5a;--c2:#62c2b2;--c3:#b79ad9;--c4:#b8a67d;--c5:#e79cc2}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 48px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px}h2{font-size:16px;margin:30px 0 10px}
.sub{margin:0 0 18px;color:var(--soft)}
.verdict{margin:0 0 18px;padding:10px 14px;border:1px solid var(--line);border-left:5px solid var(--warn);border-radius:6px;background:var(--card)}
.verdict strong{color:var(--warn)}.verdict span{margin-left:10px}
.verdict.passed{border-left-color:var(--good)}.verdict.passed strong{color:var(--good)}
.verdict.failed{border-left-color:var(--bad)}.verdict.failed strong{color:var(--bad)}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:10px;margin:0}
dl div{padding:10px 14px;border:1px solid var(--line);border-radius:6px;background:var(--card)}
dt{color:var(--soft);font-size:13px}dd{margin:0;font-size:21px;font-variant-numeric:tabular-nums}dd small{display:block;font-size:12px;line-height:1.3;color:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;margin:0 0 8px;font-size:13px}.legend i{display:inline-block;width:11px;height:11px;margin-right:6px;border-radius:2px}
svg{display:block;width:100%;height:auto;border:1px solid var(--line);border-radius:6px;background:var(--card);padding:10px}
svg text{fill:var(--soft);font-size:11.5px}svg .mid{text-anchor:middle}svg .end{text-anchor:end}svg .strong{fill:var(--ink);font-weight:600}
.grid{stroke:var(--line)}.mark{stroke:var(--ink);stroke-dasharray:4 3}.failure{fill:var(--shade)}
.c0{fill:var(--c0);background:var(--c0)}.c1{fill:var(--c1);background:var(--c1)}.c2{fill:var(--c2);background:var(--c2)}
.c3{fill:var(--c3);background:var(--c3)}.c4{fill:var(--c4);background:var(--c4)}.c5{fill:var(--c5);background:var(--c5)}
rect.failed,i.failed{fill:var(--bad);background:var(--bad)}
ol{list-style:none;margin:0;padding:0}ol li{display:flex;gap:14px;padding:6px 0;border-bottom:1px solid var(--line)}
time{flex:0 0 64px;color:var(--soft);font-variant-numeric:tabular-nums;text-align:right}
";

#[cfg(test)]
mod tests {
    use tombolo_clusterset::DrillKind;

    use super::super::plan;
    use super::super::proof::tests::lived;
    use super::*;

    fn proof() -> Proof {
        let mut proof = Proof::of(&plan::tests::drill(DrillKind::ClusterDown), &lived(None));
        proof.failures.insert("<script>alert(1)</script>".into(), 1);
        proof
    }

    #[test]
    fn everything_is_escaped() {
        assert_eq!(
            escape(r#"<a href="x">'&'</a>"#),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;"
        );
        let mut proof = proof();
        proof.why = "\"><img src=x>".into();
        proof.request = "GET /<b>".into();
        let page = html(&proof);
        assert!(
            !page.contains("<script") && !page.contains("<img") && !page.contains("<b>"),
            "{page}"
        );
    }

    #[test]
    fn one_page_that_fetches_nothing() {
        let page = html(&proof());
        for outside in [
            "http:",
            "https:",
            "src=",
            "url(",
            "@import",
            "<link",
            "http-equiv",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
        assert!(page.contains("<svg") && page.contains("failure 1 s") && page.contains("recovery 3 s"));
        assert!(page.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn bars_stack_by_cluster_at_their_time() {
        let page = html(&proof());
        assert!(page.contains("<title>1.5 s north: 10</title>"), "{page}");
        assert!(page.contains("<title>0.5 s east: 10</title>"));
    }

    #[test]
    fn a_long_drill_stays_small() {
        let bar = |at: u64| Bar {
            at_ms: at * 100,
            served: [("east".to_owned(), 1)].into(),
            failed: 1,
        };
        let timeline: Vec<Bar> = (0..9_001).map(bar).collect();
        let (bars, group) = joined(&timeline);
        assert!(bars.len() <= BARS_MAX, "{}", bars.len());
        assert_eq!(
            bars.iter()
                .map(|bar| bar.failed + bar.served["east"])
                .sum::<u32>(),
            2 * 9_001
        );
        assert_eq!((group, bars[1].at_ms), (16, 1_600));
    }
}
