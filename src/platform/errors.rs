//! Errors of the API server in words for people: what `kube` prints of them repeats each as a Rust value.

use std::error::Error as _;

use kube::runtime::watcher;

/// An error of one request: the API server's own message with its code, or what went wrong on the way, outermost first.
pub fn in_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => {
            let message = if status.message.is_empty() { status.reason.as_str() } else { &status.message };
            format!("{message} ({})", status.code)
        }
        other => {
            let mut words = other.to_string();
            let mut source = other.source();
            while let Some(cause) = source {
                let cause_words = cause.to_string();
                // Many print what caused them themselves.
                if !words.contains(&cause_words) {
                    words = format!("{words}: {cause_words}");
                }
                source = cause.source();
            }
            words
        }
    }
}

/// Logs that a watch was interrupted; it begins again by itself. That the API server has forgotten the version from which it would go on is routine.
pub fn log_interrupted_watch(what: &str, error: &watcher::Error) {
    let (words, code) = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => {
            let code = if let kube::Error::Api(status) = error { status.code } else { 0 };
            (in_words(error), code)
        }
        watcher::Error::WatchError(status) => (format!("{} ({})", status.message, status.code), status.code),
        other => (other.to_string(), 0),
    };
    if code == 410 {
        tracing::debug!("watching {what} begins again: {words}");
    } else {
        tracing::warn!("watching {what} was interrupted: {words}");
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn an_answer_is_told_in_the_servers_words_and_not_as_a_rust_value() {
        let answer = Status::failure("the object has been modified", "Conflict").with_code(409);
        let words = in_words(&kube::Error::Api(Box::new(answer)));
        assert_eq!(words, "the object has been modified (409)");
        let nameless = Status::failure("", "ServiceUnavailable").with_code(503);
        assert_eq!(in_words(&kube::Error::Api(Box::new(nameless))), "ServiceUnavailable (503)");
    }

    #[test]
    fn an_error_on_the_way_is_told_with_its_causes_once_each() {
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let words = in_words(&kube::Error::Service(Box::new(refused)));
        assert_eq!(words.matches("connection refused").count(), 1, "{words}");
        assert!(!words.contains('{'), "{words}");
    }
}
