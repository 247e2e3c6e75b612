//! Which queries are asked in which order. Pure.
//!
//! Where there is no time for all, those that have waited longest come first at the next poll, so that each is asked in its turn. The queries of one
//! Projection stay together, since its numbers have to be of one poll.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{Answers, Question};
use crate::{api::Reason, clients::prometheus::Query};

/// What is remembered from poll to poll.
#[derive(Default)]
pub(super) struct Turns {
    polls: u64,
    /// The last poll in which there was time for all queries of this question, and its place in that poll.
    asked: HashMap<Question, (u64, usize)>,
    /// The questions of the poll that has begun, in their order.
    order: Vec<Question>,
    /// Queries that were not answered in time when they were asked last.
    late: HashSet<Query>,
}

/// The queries of one poll, each once, those that have waited longest first.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Answered in time when they were asked last, or new.
    pub(super) punctual: VecDeque<Query>,
    /// The others.
    pub(super) late: VecDeque<Query>,
}

impl Turns {
    /// Begins a poll.
    pub(super) fn begin(&mut self, questions: &[&Question]) -> Queues {
        self.polls += 1;
        let mut seen = HashSet::new();
        let mut different: Vec<&Question> =
            questions.iter().copied().filter(|question| seen.insert(*question)).collect();
        self.asked.retain(|question, _| seen.contains(question));
        different.sort_by_key(|question| self.asked.get(*question).copied());
        self.order = different.iter().map(|question| (*question).clone()).collect();
        let mut queues = Queues::default();
        let mut queued = HashSet::new();
        for query in different.into_iter().flat_map(Question::each) {
            if queued.insert(query.clone()) {
                let queue = if self.late.contains(&query) { &mut queues.late } else { &mut queues.punctual };
                queue.push_back(query);
            }
        }
        self.late.retain(|query| queued.contains(query));
        queues
    }

    /// Ends a poll with the answers to all queries for which there was time.
    pub(super) fn end(&mut self, answers: &Answers) {
        for (query, answer) in answers {
            if answer.as_ref().is_err_and(|unknown| unknown.reason == Reason::TimedOut) {
                self.late.insert(query.clone());
            } else {
                self.late.remove(query);
            }
        }
        for (place, question) in self.order.drain(..).enumerate() {
            if question.each().all(|query| answers.contains_key(&query)) {
                self.asked.insert(question, (self.polls, place));
            }
        }
    }

    /// There was time for all queries of this question in the last poll.
    pub(super) fn was_asked(&self, question: &Question) -> bool {
        self.asked.get(question).is_some_and(|(poll, _)| *poll == self.polls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{measure::MeasureError, resolve::Numbers};

    fn question(pending: &str, staleness: Option<&str>) -> Question {
        let queries = Numbers::Lag { pending: pending.into(), staleness: staleness.map(Into::into), arrived: None };
        Question { tenant: None, queries }
    }

    fn texts(queue: &VecDeque<Query>) -> Vec<&str> {
        queue.iter().map(|query| &*query.text).collect()
    }

    #[test]
    fn with_more_queries_than_fit_each_is_asked_in_its_turn() {
        let questions: Vec<Question> = (0..10).map(|index| question(&format!("q{index}"), None)).collect();
        let questions: Vec<&Question> = questions.iter().collect();
        let mut turns = Turns::default();
        let mut asked: HashMap<Query, usize> = HashMap::new();
        for poll in 0..10 {
            let queues = turns.begin(&questions);
            let answers: Answers = queues.punctual.into_iter().take(3).map(|query| (query, Ok(1.0))).collect();
            for query in answers.keys() {
                *asked.entry(query.clone()).or_default() += 1;
            }
            turns.end(&answers);
            let (least, most) = (asked.values().min().unwrap(), asked.values().max().unwrap());
            assert!(asked.len() < 10 && *most == 1 || most - least <= 1, "poll {poll}: {asked:?}");
        }
        assert!(asked.values().all(|times| *times == 3), "30 turns among 10: {asked:?}");
    }

    #[test]
    fn the_queries_of_one_projection_stay_together_and_shared_ones_are_asked_once() {
        let questions = [question("a", Some("age")), question("b", Some("age")), question("c", None)];
        let questions: Vec<&Question> = questions.iter().collect();
        let mut turns = Turns::default();
        assert_eq!(texts(&turns.begin(&questions).punctual), ["a", "age", "b", "c"]);
        let of = |texts: &[&str]| -> Answers {
            texts.iter().map(|text| (Query { text: (*text).into(), tenant: None }, Ok(1.0))).collect()
        };
        turns.end(&of(&["a", "age"]));
        assert_eq!(texts(&turns.begin(&questions).punctual), ["b", "age", "c", "a"]);
        turns.end(&of(&["b"]));
        assert_eq!(texts(&turns.begin(&questions).punctual), ["b", "age", "c", "a"], "half of it is no turn");
    }

    #[test]
    fn a_late_query_waits_with_its_like_until_it_is_answered() {
        let questions = [question("slow", None), question("good", None)];
        let questions: Vec<&Question> = questions.iter().collect();
        let mut turns = Turns::default();
        let mut poll = |answer: Result<f64, MeasureError>| {
            let queues = turns.begin(&questions);
            let slow = Query { text: "slow".into(), tenant: None };
            turns.end(&Answers::from([(slow, answer)]));
            (texts(&queues.punctual).join(","), texts(&queues.late).join(","))
        };
        let late = MeasureError { reason: Reason::TimedOut, message: String::new() };
        let both = |punctual: &str, late: &str| (punctual.to_owned(), late.to_owned());
        assert_eq!(poll(Err(late)), both("slow,good", ""));
        assert_eq!(poll(Ok(1.0)), both("good", "slow"));
        assert_eq!(poll(Ok(1.0)), both("good,slow", ""));
    }
}
