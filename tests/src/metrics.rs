//! Prometheus' text, read.

use std::collections::BTreeMap;

/// Names and labels, as written, with their values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads the text form. Lines that are none are left out.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .filter_map(|line| line.rsplit_once(' '))
                .filter_map(|(k, v)| Some((k.into(), v.parse().ok()?)))
                .collect(),
        )
    }

    /// The sum of a metric over all its series, in whole numbers; 0 where there is none.
    pub fn sum(&self, name: &str) -> i64 {
        self.with(name, &[])
    }

    /// The sum over the series that carry all of these labels, in whole numbers.
    #[allow(clippy::cast_possible_truncation, reason = "counts of a test are small")]
    pub fn with(&self, name: &str, labels: &[(&str, &str)]) -> i64 {
        let carries = |key: &str| labels.iter().all(|(k, v)| key.contains(&format!("{k}=\"{v}\"")));
        self.series(name).filter(|(key, _)| carries(key)).map(|(_, value)| value).sum::<f64>().round() as i64
    }

    /// Whether there is a series of this name.
    pub fn has(&self, name: &str) -> bool {
        self.series(name).next().is_some()
    }

    fn series(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), *value))
            .filter(move |(key, _)| key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{')))
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn series_are_found_by_name_and_labels() {
        let metrics = Metrics::parse("# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"2\"} 4\nab 9\nb 1.5\n\n");
        assert_eq!(metrics.sum("a"), 7);
        assert_eq!(metrics.with("a", &[("x", "1")]), 3);
        assert_eq!(metrics.with("a", &[("x", "1"), ("y", "3")]), 0);
        assert_eq!(metrics.sum("b"), 2);
        assert!(metrics.has("ab") && !metrics.has("c"));
    }
}
