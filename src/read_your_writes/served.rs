//! Answers the requests that wait for a position.

use std::time::Duration;

use futures::future::BoxFuture;

use super::{Progress, Waiters};
use crate::{
    api::HumanDuration,
    measure::{MeasureError, ProjectionKey},
    metrics_api::{AwaitError, AwaitQuery, ReadModels},
    resolve::{Place, PositionKind, resolve, run_of},
    runs::Runs,
};

/// How long to wait where the request does not say it.
const USUAL: Duration = Duration::from_secs(5);
/// The longest wait. The server lets requests in progress go on for a little longer than this when a connection is to end.
const LONGEST: Duration = Duration::from_secs(10);

/// Answers from what the sampler measures.
#[derive(Clone)]
pub struct ReadModelPositions {
    runs: Runs,
    waiters: Waiters,
}

impl ReadModelPositions {
    /// Of the runs that serve readers. `waiters`: those whom the sampler tells what it measures.
    pub fn new(runs: impl Into<Runs>, waiters: Waiters) -> Self {
        Self { runs: runs.into(), waiters }
    }

    async fn wait(&self, query: AwaitQuery<'_>) -> Result<String, AwaitError> {
        let AwaitQuery { namespace, name, position, timeout } = query;
        let timeout = timeout_of(timeout)?;
        let key = ProjectionKey { namespace: namespace.into(), name: name.into() };
        if self.runs.projection(&key).is_none() {
            return Err(AwaitError::NotFound(format!(
                "there is no Projection {name:?} in the namespace {namespace:?}"
            )));
        }
        let projection = self.runs.serving(&key).ok_or_else(|| {
            AwaitError::Unknown(format!("{key}: what the version that readers see was made with is not known"))
        })?;
        let kind = match resolve(&projection) {
            Ok(resolved) => resolved.source.position_kind(),
            Err(why) => return Err(AwaitError::Unknown(format!("{namespace}/{name}: {}", why.message))),
        };
        let wanted = kind.parse(position).map_err(|why| AwaitError::BadRequest(format!("position: {why}")))?;
        let mut waiter = self.waiters.join(&run_of(&projection)).ok_or_else(|| {
            AwaitError::TooMany("too many requests wait for a read model: try again in a moment".to_owned())
        })?;
        let mut last = None;
        let reached = async {
            loop {
                let told = waiter.next().await;
                if let Ok(done) = &told
                    && let Some(until) = done.at(&wanted)
                    && until >= wanted.position
                {
                    return until;
                }
                last = Some(told);
            }
        };
        match tokio::time::timeout(timeout, reached).await {
            Ok(until) => Ok(kind.written(&wanted.at(until))),
            Err(_) => Err(not_in_time(&format!("{namespace}/{name}"), &kind, &wanted, last)),
        }
    }
}

impl ReadModels for ReadModelPositions {
    fn reached<'a>(&'a self, query: AwaitQuery<'a>) -> BoxFuture<'a, Result<String, AwaitError>> {
        Box::pin(self.wait(query))
    }
}

fn timeout_of(text: Option<&str>) -> Result<Duration, AwaitError> {
    let Some(text) = text else { return Ok(USUAL) };
    let HumanDuration(timeout) = text.parse().map_err(|why| AwaitError::BadRequest(format!("timeout: {why}")))?;
    if timeout > LONGEST {
        let longest = HumanDuration(LONGEST);
        return Err(AwaitError::BadRequest(format!("timeout: at most {longest}: ask again where that is not enough")));
    }
    Ok(timeout)
}

/// What to answer when the time is over.
fn not_in_time(name: &str, kind: &PositionKind, wanted: &Place, last: Option<Progress>) -> AwaitError {
    let late = format!("{name} has not reached position {} in time", kind.written(wanted));
    match last {
        Some(Ok(done)) => match done.at(wanted).map(|until| kind.written(&wanted.at(until))) {
            Some(until) => AwaitError::TimedOut {
                message: format!("{late}: it has everything up to {until}"),
                position: Some(until),
            },
            None => AwaitError::TimedOut {
                message: format!("{late}: no checkpoint says how far it is there"),
                position: None,
            },
        },
        Some(Err(MeasureError { message, .. })) => {
            AwaitError::Unknown(format!("how far {name} has come is not known: {message}"))
        }
        None => AwaitError::Unknown(format!("how far {name} has come is not known: it was not measured in time")),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Done, *};
    use crate::{api::Reason, lag::Position};

    #[test]
    fn the_time_to_wait_is_bounded() {
        assert_eq!(timeout_of(None).unwrap(), USUAL);
        assert_eq!(timeout_of(Some("250ms")).unwrap(), Duration::from_millis(250));
        assert_eq!(timeout_of(Some("0s")).unwrap(), Duration::ZERO);
        for bad in ["11s", "1h", "5", "", "-1s", "soon"] {
            assert!(
                matches!(timeout_of(Some(bad)), Err(AwaitError::BadRequest(why)) if why.contains("timeout")),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_is_not_known_is_told_apart_from_what_is_not_there_yet() {
        let place = Place { log: None, position: Position(57) };
        let answer = |last| not_in_time("shop/orders", &PositionKind::Number, &place, last);
        let known = answer(Some(Ok(Done { up_to: Some(Position(41)), ..Done::default() })));
        assert!(matches!(known, AwaitError::TimedOut { position: Some(position), .. } if position == "41"));
        assert!(matches!(answer(Some(Ok(Done::default()))), AwaitError::TimedOut { position: None, .. }));
        let failed = MeasureError { reason: Reason::TimedOut, message: "the source does not answer".to_owned() };
        assert!(matches!(answer(Some(Err(failed))), AwaitError::Unknown(why) if why.contains("does not answer")));
        assert!(matches!(answer(None), AwaitError::Unknown(_)));
    }
}
