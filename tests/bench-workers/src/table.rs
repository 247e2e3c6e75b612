//! What is printed: a table for each race, what it says of the goals, and all of it once more in a few lines.

use std::fmt::Write;

use bench_scaling::traces::Brief;
use projectionist::simulate::Score;

use crate::{
    predict::{Prediction, Race},
    ways::Way,
};

/// The simulator and the cluster should differ by no more than this.
const AGREES_WITHIN: f64 = 0.15;
/// Less lateness than this is none: a tick or two of staleness that the workers' clocks tell a little later.
const NOT_LATE: f64 = 1.0;
/// Of lateness, differences below this are not compared: a second over the target for a minute is chance.
const LITTLE: f64 = 60.0;

/// One way in one race.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub way: Way,
    pub score: Score,
    /// The same in the simulator.
    pub simulated: Prediction,
    /// From a worker's creation until it was ready, in seconds.
    pub start_up: f64,
}

/// A race that is over.
#[derive(Clone, Debug)]
pub struct Finished {
    pub race: Race,
    pub outcomes: Vec<Outcome>,
    /// Worker-seconds of the best plan, where it is known.
    pub foresight: Option<f64>,
}

/// Whether a goal was reached, and by how much.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    pub reached: bool,
    pub text: String,
}

impl Finished {
    fn of(&self, way: Way) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.way == way)
    }

    /// The goals that the ways that ran can tell; none where lag is not exact, for which there are none.
    pub fn goals(&self) -> Vec<Goal> {
        let Some(ours) = self.of(Way::Ours).filter(|_| self.race.kind.is_exact()) else { return Vec::new() };
        let mut goals = Vec::new();
        let (late, cost) = (ours.score.lateness, ours.score.worker_seconds);
        if let Some(query) = self.of(Way::Query) {
            let reached = late <= NOT_LATE || query.score.lateness > NOT_LATE;
            let text = format!("never late where the query is not: {late:.0} against {:.0} s·s", query.score.lateness);
            goals.push(Goal { reached, text });
            let ratio = cost / query.score.worker_seconds;
            goals.push(Goal {
                reached: ratio <= 0.9,
                text: format!("worker-seconds at most 0.9 of the query's: {ratio:.2}"),
            });
        }
        if let Some(foresight) = self.foresight {
            let ratio = cost / foresight;
            goals.push(Goal {
                reached: ratio <= 1.4,
                text: format!("worker-seconds at most 1.4 of foresight's: {ratio:.2}"),
            });
        }
        if self.race.trace == Brief::Steady {
            let reversals = ours.score.reversals;
            goals.push(Goal { reached: reversals == 0, text: format!("no reversal on steady load: {reversals}") });
        }
        goals
    }

    /// The race as Markdown.
    pub fn table(&self) -> String {
        let Race { kind, trace, target, percent, seconds } = self.race;
        let name = format!("{trace:?}").to_lowercase();
        let mut text = format!("\n## {}, {name}, target {} s\n\n", kind.name(), target.as_secs_f64());
        if percent != 100 {
            let _ = writeln!(text, "With {percent} % of the trace's events.\n");
        }
        if seconds < trace.seconds() {
            let _ = writeln!(text, "The first {seconds} s of the trace.\n");
        }
        text.push_str("| way | late s·s | late % | worst s | worker-seconds | of foresight | reversals | peak | start-up s | simulated: late, worker-seconds (least–most) | cluster / simulated |\n");
        text.push_str("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
        for outcome in &self.outcomes {
            let Outcome { way, score, simulated, start_up } = outcome;
            let of_foresight =
                self.foresight.map_or("–".to_owned(), |best| format!("{:.2}", score.worker_seconds / best));
            let mark = if outcome.agrees() { "" } else { " differs" };
            let _ = writeln!(
                text,
                "| {} | {:.0} | {:.1} | {:.1} | {:.0} | {of_foresight} | {} | {} | {start_up:.1} | {:.0}, {:.0} ({:.0}–{:.0}) | {:.2}{mark} |",
                way.name(),
                score.lateness,
                score.out_of_target * 100.0,
                score.worst_staleness_seconds,
                score.worker_seconds,
                score.reversals,
                score.most_workers,
                simulated.lateness,
                simulated.worker_seconds,
                simulated.least,
                simulated.most,
                score.worker_seconds / simulated.worker_seconds,
            );
        }
        if let Some(foresight) = self.foresight {
            let _ = writeln!(text, "| foresight | – | – | – | {foresight:.0} | 1.00 | – | – | – | – | – |");
        }
        text.push('\n');
        if !kind.is_exact() {
            text.push_str("- no goals: which event is which shard's is not told, so lag is an upper bound\n");
        }
        for Goal { reached, text: goal } in self.goals() {
            let _ = writeln!(text, "- {}: {goal}", if reached { "ok" } else { "MISSED" });
        }
        text
    }
}

impl Outcome {
    /// Whether cluster and simulator tell the same of cost and, where it is more than chance, of lateness.
    pub fn agrees(&self) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= AGREES_WITHIN * b.max(a);
        let (late, simulated) = (self.score.lateness, self.simulated.lateness);
        near(self.score.worker_seconds, self.simulated.worker_seconds)
            && ((late - simulated).abs() < LITTLE || near(late, simulated))
    }
}

/// All races in a few lines.
pub fn summary(all: &[Finished]) -> String {
    let goals: Vec<(Race, Goal)> =
        all.iter().flat_map(|finished| finished.goals().into_iter().map(|goal| (finished.race, goal))).collect();
    let reached = goals.iter().filter(|(_, goal)| goal.reached).count();
    let mut text = format!("\n# {reached} of {} goals reached\n\n", goals.len());
    for (race, goal) in goals.iter().filter(|(_, goal)| !goal.reached) {
        let name = format!("{:?}", race.trace).to_lowercase();
        let _ = writeln!(text, "- {}, {name}, {} s: {}", race.kind.name(), race.target.as_secs_f64(), goal.text);
    }
    let outcomes = || all.iter().flat_map(|finished| &finished.outcomes);
    let agree = outcomes().filter(|outcome| outcome.agrees()).count();
    let _ = writeln!(text, "\nSimulator and cluster agree within 15 % in {agree} of {} cells.", outcomes().count());
    text
}

/// What the simulator says of races that no cluster ran.
pub fn predictions(all: &[(Race, Way, Prediction)]) -> String {
    let mut text =
        "| race | target s | way | simulated: late s·s | simulated: worker-seconds | least–most |\n|---|--:|---|--:|--:|--:|\n".to_owned();
    for (race, way, simulated) in all {
        let _ = writeln!(
            text,
            "| {}, {} | {} | {} | {:.0} | {:.0} | {:.0}–{:.0} |",
            race.kind.name(),
            format!("{:?}", race.trace).to_lowercase(),
            race.target.as_secs_f64(),
            way.name(),
            simulated.lateness,
            simulated.worker_seconds,
            simulated.least,
            simulated.most,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kinds::Kind;

    fn outcome(way: Way, lateness: f64, worker_seconds: f64, reversals: usize) -> Outcome {
        let score = Score {
            out_of_target_seconds: 0.0,
            out_of_target: 0.0,
            lateness,
            worst_staleness_seconds: 0.0,
            worker_seconds,
            most_workers: 9,
            changes: 3,
            reversals,
        };
        Outcome {
            way,
            score,
            simulated: Prediction { lateness: 0.0, worker_seconds: 1_000.0, least: 900.0, most: 1_100.0 },
            start_up: 2.0,
        }
    }

    fn finished(kind: Kind, ours: Outcome) -> Finished {
        let race = Race { kind, trace: Brief::Steady, target: Duration::from_secs(15), percent: 100, seconds: 300 };
        Finished { race, outcomes: vec![ours, outcome(Way::Query, 0.0, 1_000.0, 0)], foresight: Some(700.0) }
    }

    #[test]
    fn the_goals_are_those_of_lag_that_is_exact() {
        let reached = |finished: &Finished| finished.goals().iter().map(|goal| goal.reached).collect::<Vec<bool>>();
        let good = finished(Kind::Shards, outcome(Way::Ours, 0.0, 899.0, 0));
        assert_eq!(reached(&good), [true, true, true, true]);
        let bad = finished(Kind::Shards, outcome(Way::Ours, 20.0, 990.0, 2));
        assert_eq!(reached(&bad), [false, false, false, false]);
        assert_eq!(reached(&finished(Kind::Untold, outcome(Way::Ours, 20.0, 990.0, 2))), Vec::<bool>::new());
        assert!(bad.table().contains("- MISSED: no reversal on steady load: 2"), "{}", bad.table());
        assert!(summary(&[good, bad]).starts_with("\n# 4 of 8 goals reached"));
    }

    #[test]
    fn predictions_are_told_with_the_least_and_the_most() {
        let Finished { race, outcomes, .. } = finished(Kind::Row, outcome(Way::Ours, 0.0, 1.0, 0));
        let text = predictions(&[(race, Way::Ours, outcomes[0].simulated)]);
        assert!(text.ends_with("| row, steady | 15 | ours | 0 | 1000 | 900–1100 |\n"), "{text}");
    }

    #[test]
    fn agreement_is_of_cost_and_of_lateness_that_is_more_than_chance() {
        assert!(outcome(Way::Ours, 50.0, 1_100.0, 0).agrees());
        assert!(!outcome(Way::Ours, 0.0, 1_200.0, 0).agrees());
        assert!(!outcome(Way::Ours, 500.0, 1_000.0, 0).agrees());
    }
}
