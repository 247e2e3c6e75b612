//! From a Projection to the bounds that the model of [`crate::lag`] works within: one answer for the operator and the simulator. Pure.

use crate::{
    api::{self, Ordering, Projection},
    lag::{Bounds, CatchUp, LookAhead, ValueTarget},
};

/// The bounds, but for those that only a look at other Projections tells ([`Bounds::connections`] is absent).
pub fn bounds(projection: &Projection) -> Bounds {
    let spec = &projection.spec;
    let scaling = &spec.scaling;
    let count = |count: i32| u32::try_from(count).unwrap_or(0);
    let max = count(scaling.most_workers()).max(1);
    Bounds {
        target: spec.lag.target.0,
        min: count(scaling.min_workers),
        max,
        // Workers that compete for events are not limited by shards.
        shards: spec.shard_count().filter(|_| scaling.ordering != Ordering::None),
        strict: scaling.ordering == Ordering::Strict,
        stuck_after: spec.failure.stuck_after.0,
        idle_for: scaling.idle_for.0,
        catch_up: spec.catch_up.as_ref().map(|catch_up| CatchUp {
            within: catch_up.within.0,
            max: catch_up.max_workers.map_or(max, count).clamp(1, max),
        }),
        given_rate: scaling.events_per_worker_second,
        connections: None,
        strain: None,
        throttled: None,
        look_ahead: match scaling.look_ahead {
            api::LookAhead::None => None,
            api::LookAhead::Hourly => Some(LookAhead::Hourly),
            api::LookAhead::Daily => Some(LookAhead::Daily),
        },
        retention: spec.event_table().and_then(|table| table.retention).map(|kept| kept.0),
        value: spec.lag.value.and_then(|value| match (value.target, value.average_target) {
            (Some(target), None) => Some(ValueTarget::Whole(target)),
            (None, Some(each)) => Some(ValueTarget::PerWorker(each)),
            _ => None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(change: &serde_json::Value) -> Bounds {
        let mut spec = serde_json::json!({
            "source": { "postgres": { "connection": { "secretRef": { "name": "db" } }, "eventTable": { "retention": "720h" } } },
            "lag": { "target": "5s" },
        });
        for (field, value) in change.as_object().unwrap() {
            spec[field] = value.clone();
        }
        bounds(&Projection::new("orders", serde_json::from_value(spec).unwrap()))
    }

    #[test]
    fn shards_limit_only_workers_that_keep_an_order() {
        assert_eq!(of(&serde_json::json!({ "scaling": { "shards": 6 } })).shards, Some(6));
        assert_eq!(of(&serde_json::json!({ "scaling": { "shards": 6, "ordering": "None" } })).shards, None);
    }

    #[test]
    fn what_the_spec_does_not_say_has_its_usual_value() {
        let bounds = of(&serde_json::json!({}));
        assert_eq!((bounds.min, bounds.max, bounds.strict), (1, 10, false));
        assert_eq!((bounds.stuck_after, bounds.idle_for), (Duration::from_secs(300), Duration::from_secs(300)));
        assert_eq!((bounds.catch_up, bounds.given_rate, bounds.connections), (None, None, None));
        assert_eq!(bounds.retention, Some(Duration::from_secs(720 * 3_600)));
    }

    #[test]
    fn catching_up_may_have_fewer_workers_and_never_more() {
        let max = |catch_up: u32| {
            let spec = serde_json::json!({ "catchUp": { "within": "1h", "maxWorkers": catch_up }, "scaling": { "maxWorkers": 8 } });
            of(&spec).catch_up.unwrap().max
        };
        assert_eq!((max(4), max(20)), (4, 8));
        assert_eq!(of(&serde_json::json!({ "catchUp": { "within": "1h" } })).catch_up.unwrap().max, 10);
    }
}
