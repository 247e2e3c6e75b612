//! The table, and how it compares with what was aimed at.

use bench_scaling::{rivals::Rival, traces::Cost};

use crate::{Cell, Row};

/// Prints one target's and one cost's table as Markdown.
pub fn print(target: u64, cost: Cost, rows: &[Row]) {
    let cost = match cost {
        Cost::Known => "an event always costs the same",
        Cost::Doubles => "an event costs twice as much from the middle on",
    };
    println!("\n## Target {target} s, {cost}\n");
    let names: Vec<&str> = Rival::ALL.iter().map(|rival| rival.name()).chain(["foresight"]).collect();
    println!(
        "Lateness in s·s (share of the time late); worker-seconds; reversals within a minute, where there are any.\n"
    );
    println!("| trace | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for row in rows {
        println!("| {} | {} |", row.name, cells(&row.cells));
    }
    let fair: Vec<&Row> = rows.iter().filter(|row| !row.hopeless).collect();
    let sums = sums(&fair);
    println!("| **all but the hopeless** | {} |\n", cells(&sums));
    goals(&fair, rows, &sums);
}

/// Each column's sum: that of each rival, then foresight's.
pub fn sums(rows: &[&Row]) -> Vec<Cell> {
    (0..=Rival::ALL.len()).map(|column| sum(rows, column)).collect()
}

/// Prints what becomes of each way to scale where workers are not ideal: a row for each kind, the sums of all traces.
pub fn print_kinds(target: u64, rows: &[Row]) {
    println!("\n## Workers that are not ideal, target {target} s\n");
    println!(
        "The sums of all traces but the hopeless, an event always costing the same. Lateness, in s·s, is told by when events were handled, not by commits.\n"
    );
    let shown = [Rival::CountTuned, Rival::Query, Rival::OursByAutoscaler, Rival::Ours];
    let columns: Vec<usize> = shown.into_iter().map(column).chain([Rival::ALL.len()]).collect();
    let names: Vec<&str> = shown.into_iter().map(Rival::name).chain(["foresight"]).collect();
    println!("| workers | {} | of the query's | of foresight's |", names.join(" | "));
    println!("|---|{}---|---|", "---|".repeat(names.len()));
    for row in rows {
        let chosen: Vec<Cell> = columns.iter().map(|column| row.cells[*column]).collect();
        let ours = row.cells[column(Rival::Ours)].worker_seconds;
        let part = |of: Cell| {
            if of.worker_seconds > 0.0 { format!("{:.2}", ours / of.worker_seconds) } else { "–".to_owned() }
        };
        let (query, foresight) = (row.cells[column(Rival::Query)], row.cells[Rival::ALL.len()]);
        println!("| {} | {} | {} | {} |", row.name, cells(&chosen), part(query), part(foresight));
    }
}

fn cells(cells: &[Cell]) -> String {
    let text = |cell: &Cell| {
        if cell.worker_seconds <= 0.0 {
            return "–".to_owned();
        }
        let reversals = if cell.reversals > 0 { format!("; {} rev", cell.reversals) } else { String::new() };
        format!("{:.0} ({:.1} %); {:.0}{reversals}", cell.lateness, cell.late * 100.0, cell.worker_seconds)
    };
    cells.iter().map(text).collect::<Vec<String>>().join(" | ")
}

fn sum(rows: &[&Row], column: usize) -> Cell {
    let cells = || rows.iter().filter_map(|row| row.cells.get(column));
    let add = |of: fn(&Cell) -> f64| cells().map(of).sum::<f64>();
    Cell {
        lateness: add(|cell| cell.lateness),
        late: add(|cell| cell.late) / rows.len().max(1) as f64,
        worker_seconds: add(|cell| cell.worker_seconds),
        reversals: cells().map(|cell| cell.reversals).sum(),
    }
}

fn column(rival: Rival) -> usize {
    Rival::ALL.iter().position(|one| *one == rival).unwrap_or(0)
}

fn goals(fair: &[&Row], rows: &[Row], sums: &[Cell]) {
    let (ours, query, foresight) = (sums[column(Rival::Ours)], sums[column(Rival::Query)], sums[Rival::ALL.len()]);
    let rivals = Rival::ALL.into_iter().filter(|rival| !matches!(rival, Rival::Ours | Rival::OursByAutoscaler));
    let best = rivals.clone().map(|rival| (sums[column(rival)].lateness, rival)).min_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((lateness, rival)) = best {
        println!("- lateness: {:.2} of the least late other one's ({})", ratio(ours.lateness, lateness), rival.name());
    }
    println!("- lateness: {:.2} of the query's", ratio(ours.lateness, query.lateness));
    println!("- worker-seconds: {:.2} of the query's", ratio(ours.worker_seconds, query.worker_seconds));
    println!("- worker-seconds: {:.2} of what foresight needs", ratio(ours.worker_seconds, foresight.worker_seconds));
    let steady = fair.iter().find(|row| row.name == "steady");
    if let Some(steady) = steady {
        println!("- reversals on steady load: {}", steady.cells[column(Rival::Ours)].reversals);
    }
    losses(rows);
}

/// Where another way is better: less late, or no later for fewer worker-seconds.
fn losses(rows: &[Row]) {
    for row in rows {
        let ours = row.cells[column(Rival::Ours)];
        for rival in Rival::ALL.into_iter().filter(|rival| !matches!(rival, Rival::Ours | Rival::OursByAutoscaler)) {
            let other = row.cells[column(rival)];
            let (name, against) = (row.name, rival.name());
            if ours.lateness > other.lateness + 1.0 {
                println!(
                    "- loses: later than {against} on {name} ({:.0} against {:.0} s·s)",
                    ours.lateness, other.lateness
                );
            } else if other.lateness <= ours.lateness + 1.0 && other.worker_seconds < ours.worker_seconds {
                let more = ratio(ours.worker_seconds, other.worker_seconds);
                println!("- loses: as late as {against} on {name}, for {more:.2} of its worker-seconds");
            }
        }
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 {
        a / b
    } else if a > 0.0 {
        f64::INFINITY
    } else {
        1.0
    }
}
