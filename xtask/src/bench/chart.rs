//! Charts of one workload: a bar for each server, and a panel for each of its main figures.

use std::io;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::{Measured, Outcome};
use super::servers::OURS;
use super::stats::Metric;

/// In pixels.
const NAMES: i32 = 150;
const PANEL: i32 = 320;
const ROW: i32 = 24;
const TOP: i32 = 56;
/// Room behind the longest bar for its figure.
const FIGURE: i32 = 90;

const OUR_COLOUR: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const COLOUR: RGBColor = RGBColor(0x9a, 0xa5, 0xb1);

/// The figures that are drawn.
pub(super) fn panels(outcome: &Outcome) -> Vec<Metric> {
    let main = [
        Metric::Rate,
        Metric::Cpu,
        Metric::P99,
        Metric::BytesPerConnection,
        Metric::Instructions,
        Metric::Syscalls,
    ];
    let has = |metric: &Metric| outcome.servers.iter().any(|server| server.figures.contains_key(metric));
    main.into_iter().filter(has).collect()
}

/// An SVG.
pub(super) fn draw(outcome: &Outcome) -> io::Result<String> {
    let panels = panels(outcome);
    let servers: Vec<&Measured> =
        outcome.servers.iter().filter(|server| !server.figures.is_empty()).collect();
    let size =
        (NAMES + PANEL * i32::try_from(panels.len()).unwrap_or(1), TOP + ROW * servers.len() as i32 + 12);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (size.0 as u32, size.1 as u32)).into_drawing_area();
        area.fill(&WHITE).map_err(io::Error::other)?;
        label(&area, outcome.title, (10, 8), 16)?;
        for (row, server) in servers.iter().enumerate() {
            label(&area, &server.name, (10, TOP + ROW * row as i32 + 4), 13)?;
        }
        for (index, metric) in panels.iter().enumerate() {
            panel(&area, *metric, &servers, NAMES + PANEL * index as i32)?;
        }
        area.present().map_err(io::Error::other)?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn label(area: &Area<'_>, text: &str, at: (i32, i32), size: i32) -> io::Result<()> {
    area.draw(&Text::new(text.to_owned(), at, ("sans-serif", size).into_font().color(&BLACK)))
        .map_err(io::Error::other)
}

fn panel(area: &Area<'_>, metric: Metric, servers: &[&Measured], left: i32) -> io::Result<()> {
    let title = if metric == Metric::Cpu { "CPU µs (dark: in the program)" } else { metric.title() };
    label(area, title, (left, 34), 13)?;
    let median = |server: &Measured, metric| server.figures.get(&metric).map(|figure| figure.value.median);
    let largest =
        servers.iter().filter_map(|server| median(server, metric)).fold(f64::MIN_POSITIVE, f64::max);
    let width = |value: f64| (f64::from(PANEL - FIGURE) * value / largest) as i32;
    for (row, server) in servers.iter().enumerate() {
        let Some(value) = median(server, metric) else { continue };
        let top = TOP + ROW * row as i32;
        let colour = if server.name == OURS { OUR_COLOUR } else { COLOUR };
        let bar = |from: i32, to: i32, opacity: f64| {
            let corners = [(left + from, top + 2), (left + to, top + ROW - 4)];
            area.draw(&Rectangle::new(corners, colour.mix(opacity).filled())).map_err(io::Error::other)
        };
        match median(server, Metric::User).filter(|_| metric == Metric::Cpu) {
            Some(user) => {
                bar(0, width(user), 1.0)?;
                bar(width(user), width(value), 0.5)?;
            }
            None => bar(0, width(value), 1.0)?,
        }
        label(area, &metric.show(value), (left + width(value) + 5, top + 4), 12)?;
    }
    Ok(())
}
