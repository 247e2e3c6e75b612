//! Waiting for what comes true later, with an error that says what was seen last.

use std::fmt::{Debug, Display};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// What one look saw.
pub trait Look {
    /// What the caller gets once it is there.
    type Found;
    /// The thing waited for, or what was there instead.
    ///
    /// # Errors
    /// While it is not there.
    fn found(self) -> Result<Self::Found, String>;
}

impl Look for bool {
    type Found = ();
    fn found(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".to_owned()) }
    }
}

impl<T> Look for Option<T> {
    type Found = T;
    fn found(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

/// A look that says itself what it saw: `Err(text)` while waiting.
impl<T> Look for Result<T, String> {
    type Found = T;
    fn found(self) -> Self {
        self
    }
}

/// Looks every 100 ms until `look` answers `true`, `Some(…)` or `Ok(…)` and returns what it found. An error of the look itself counts
/// as not yet.
///
/// # Errors
/// When `deadline` has passed: the message says what was waited for, how long, and what was seen last.
///
/// ```text
/// eventually(Duration::from_secs(30), "three workers are ready", || async { Ok(ready(&client).await? == 3) }).await?;
/// ```
pub async fn eventually<L, E, Looked>(
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> Looked,
) -> Result<L::Found>
where
    L: Look,
    E: Display,
    Looked: Future<Output = Result<L, E>>,
{
    let started = Instant::now();
    let mut before = None;
    loop {
        // A look that hangs must not outlast the deadline by much.
        let left = deadline.saturating_sub(started.elapsed()).max(INTERVAL);
        let seen = match tokio::time::timeout(left, look()).await {
            Ok(Ok(look)) => match look.found() {
                Ok(found) => return Ok(found),
                Err(seen) => seen,
            },
            Ok(Err(error)) => format!("the error: {error:#}"),
            // The last one may only have had too little time.
            Err(_) => match before {
                Some(before) => format!("a look that did not come back; before it: {before}"),
                None => "a look that did not come back".to_owned(),
            },
        };
        if started.elapsed() >= deadline {
            bail!("waited {:.1} s until {what}; last seen: {seen}", deadline.as_secs_f64());
        }
        before = Some(seen);
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Looks until the value satisfies `wanted`, and returns it. The error shows the last value.
///
/// # Errors
/// As [`eventually`].
pub async fn eventually_is<T, E, Looked>(
    deadline: Duration,
    what: &str,
    wanted: impl Fn(&T) -> bool,
    mut look: impl FnMut() -> Looked,
) -> Result<T>
where
    T: Debug,
    E: Display,
    Looked: Future<Output = Result<T, E>>,
{
    eventually(deadline, what, || {
        let looked = look();
        async {
            let value = looked.await?;
            Ok::<_, E>(if wanted(&value) { Ok(value) } else { Err(format!("{value:?}")) })
        }
    })
    .await
}

/// Holds if `look` answers the same all through `period`: for what must *not* happen.
///
/// # Errors
/// As soon as the value differs; an error of the look itself is passed on.
pub async fn always_is<T, E, Looked>(
    period: Duration,
    what: &str,
    wanted: impl Fn(&T) -> bool,
    mut look: impl FnMut() -> Looked,
) -> Result<()>
where
    T: Debug,
    E: Into<anyhow::Error>,
    Looked: Future<Output = Result<T, E>>,
{
    let started = Instant::now();
    while started.elapsed() < period {
        let value = look().await.map_err(Into::into)?;
        if !wanted(&value) {
            bail!("after {:.1} s it was no longer true that {what}: {value:?}", started.elapsed().as_secs_f64());
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_returns_what_it_found_as_soon_as_it_is_there() {
        let mut looks = 0;
        let found = eventually(Duration::from_secs(5), "the third look", || {
            looks += 1;
            let look = looks;
            async move { Ok::<_, anyhow::Error>((look == 3).then_some(look)) }
        });
        assert_eq!(found.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn when_time_is_up_it_says_what_it_waited_for_and_what_it_saw_last() {
        let waited = eventually_is(
            Duration::from_millis(150),
            "there are 7",
            |n| *n == 7,
            || async { Ok::<_, anyhow::Error>(4) },
        );
        let error = waited.await.unwrap_err().to_string();
        assert_eq!(error, "waited 0.1 s until there are 7; last seen: 4");
    }

    #[tokio::test]
    async fn a_look_that_hangs_does_not_hang_the_test() {
        let waited = eventually::<bool, anyhow::Error, _>(Duration::from_millis(50), "an answer", std::future::pending);
        assert!(waited.await.unwrap_err().to_string().contains("did not come back"));
    }

    #[tokio::test]
    async fn errors_of_a_look_are_waited_out_and_the_last_is_shown() {
        let look = || async { Err::<bool, _>("no route") };
        let error = eventually(Duration::from_millis(50), "it works", look).await.unwrap_err().to_string();
        assert!(error.ends_with("the error: no route"), "{error}");
    }
}
