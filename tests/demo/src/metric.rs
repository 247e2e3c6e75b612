//! Metrics of Projections, read as the autoscaler reads them.

use anyhow::{Context as _, Result};
use kube::Client;
use serde_json::Value;

/// The first value under this path of the metrics API.
///
/// # Errors
/// When the API refuses, or has no value.
pub async fn value(client: &Client, path: &str) -> Result<f64> {
    let list: Value = client.request(http::Request::get(path).body(Vec::new())?).await?;
    let text = list.pointer("/items/0/value").and_then(Value::as_str).context("no value")?;
    quantity(text).with_context(|| format!("{text:?} is no quantity"))
}

/// A number as Kubernetes writes it in metrics: `0`, `1500m`, `12k`.
fn quantity(text: &str) -> Option<f64> {
    let digits = text.find(|character: char| character.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let scale = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, number) in [("0", 0.0), ("7", 7.0), ("1500m", 1.5), ("12k", 12_000.0), ("3M", 3e6)] {
            let read = quantity(text).unwrap();
            assert!((read - number).abs() < 1e-9, "{text}: {read}");
        }
        assert_eq!(quantity(""), None);
        assert_eq!(quantity("many"), None);
        assert_eq!(quantity("5x"), None);
    }
}
