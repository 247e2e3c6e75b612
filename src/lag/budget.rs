//! How the connections of one read store are shared among the projections on it.

use std::{cmp::Reverse, collections::BinaryHeap};

/// What one projection would like to have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Claim {
    /// Workers that its model asks for, were there no budget.
    pub wanted: u32,
    /// Workers that there are, by the last that is known.
    pub running: u32,
    /// Connections that one of its workers takes, at least 1.
    pub per_worker: u32,
}

/// How many workers each claim may have when all of them together take at most `connections`.
///
/// Connections that are yet to become free are not given away: a share grows beyond the workers that there are by no more than is left beside the
/// others' shares and the others' workers.
///
/// Fair by connections (max-min fairness, as in Bertsekas and Gallager, Data Networks, 6.5.2): no claim gets more than it wants, and what it leaves
/// goes to the others, always to the one that has least so far. One worker each is never refused, even where the connections do not suffice for that:
/// a projection without any worker would never catch up, and the budget shows this by being exceeded.
pub fn fair_shares(connections: u32, claims: &[Claim]) -> Vec<u32> {
    let per_worker = |claim: &Claim| claim.per_worker.max(1);
    let mut shares: Vec<u32> = claims.iter().map(|claim| claim.wanted.min(1)).collect();
    let taken = claims.iter().zip(&shares).map(|(claim, share)| u64::from(per_worker(claim)) * u64::from(*share)).sum();
    let mut left = u64::from(connections).saturating_sub(taken);
    // The claim that has least first; among equals the first.
    let mut waiting: BinaryHeap<Reverse<(u64, usize)>> = claims
        .iter()
        .zip(&shares)
        .enumerate()
        .filter(|(_, (claim, share))| claim.wanted > **share)
        .map(|(index, (claim, share))| Reverse((u64::from(per_worker(claim)) * u64::from(*share), index)))
        .collect();
    while let Some(Reverse((has, index))) = waiting.pop() {
        let (Some(claim), Some(share)) = (claims.get(index), shares.get_mut(index)) else { continue };
        let cost = u64::from(per_worker(claim));
        // Another's workers may be cheaper.
        if cost > left {
            continue;
        }
        left -= cost;
        *share += 1;
        if *share < claim.wanted {
            waiting.push(Reverse((has + cost, index)));
        }
    }
    free_now(connections, claims, &shares)
}

fn free_now(connections: u32, claims: &[Claim], shares: &[u32]) -> Vec<u32> {
    let of = |claim: &Claim, workers: u32| u64::from(claim.per_worker.max(1)) * u64::from(workers);
    let both = || claims.iter().zip(shares);
    let held: u64 = both().map(|(claim, share)| of(claim, claim.running.max(*share))).sum();
    both()
        .map(|(claim, share)| {
            let others = held - of(claim, claim.running.max(*share));
            let left = u64::from(connections).saturating_sub(others) / u64::from(claim.per_worker.max(1));
            let left = u32::try_from(left).unwrap_or(u32::MAX).max(claim.running).max(1);
            left.min(*share)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(wanted: u32, per_worker: u32) -> Claim {
        Claim { wanted, running: 0, per_worker }
    }

    #[test]
    fn what_another_still_uses_is_given_only_when_it_is_free() {
        let shares = |running: [u32; 2]| {
            let claims = running.map(|running| Claim { wanted: 10, running, per_worker: 2 });
            fair_shares(20, &claims)
        };
        assert_eq!(shares([10, 0]), [5, 1], "the other's first worker is never refused");
        assert_eq!(shares([10, 1]), [5, 1]);
        assert_eq!(shares([7, 1]), [5, 3]);
        assert_eq!(shares([5, 3]), [5, 5]);
        assert_eq!(shares([5, 5]), [5, 5]);
        assert_eq!(shares([10, 3]), [5, 3], "what runs is not taken away for it");
        assert_eq!(shares([1, 1]), [5, 5], "both may grow at once");
    }

    #[test]
    fn who_wants_little_gets_it_and_leaves_the_rest_to_the_others() {
        for (connections, claims, expected, why) in [
            (80, vec![claim(8, 4)], vec![8], "all that one wants"),
            (20, vec![claim(8, 4)], vec![5], "all that there is"),
            (40, vec![claim(10, 4), claim(10, 4)], vec![5, 5], "halves"),
            (40, vec![claim(2, 4), claim(10, 4)], vec![2, 8], "what one leaves the other gets"),
            (30, vec![claim(10, 1), claim(10, 4)], vec![10, 5], "fair by connections, not by workers"),
            (
                3,
                vec![claim(5, 1), claim(5, 1), claim(5, 1), claim(5, 1)],
                vec![1, 1, 1, 1],
                "one each, whatever there is",
            ),
            (10, vec![claim(0, 1), claim(20, 1)], vec![0, 10], "who sleeps takes nothing"),
            (10, vec![], vec![], "no claims"),
        ] {
            assert_eq!(fair_shares(connections, &claims), expected, "{why}");
        }
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_nothing_that_a_claim_could_use_is_left(
            connections in 0_u32..200,
            claims in prop::collection::vec((0_u32..30, 1_u32..6).prop_map(|(wanted, per_worker)| claim(wanted, per_worker)), 0..8),
        ) {
            let shares = fair_shares(connections, &claims);
            let used: u32 = shares.iter().zip(&claims).map(|(share, claim)| share * claim.per_worker).sum();
            let least: u32 = claims.iter().map(|claim| claim.wanted.min(1) * claim.per_worker).sum();
            prop_assert!(used <= connections.max(least));
            for (share, claim) in shares.iter().zip(&claims) {
                prop_assert!(*share <= claim.wanted && *share >= claim.wanted.min(1));
                prop_assert!(*share == claim.wanted || used + claim.per_worker > connections);
            }
            // A claim that is held back has no less than another has without its last worker, unless its own worker needs more than what is left.
            for (index, one) in claims.iter().enumerate().filter(|(index, claim)| shares[*index] < claim.wanted) {
                for (other, claim) in claims.iter().enumerate().filter(|(other, _)| shares[*other] > 1) {
                    let without_last = (shares[other] - 1) * claim.per_worker;
                    prop_assert!(without_last <= shares[index] * one.per_worker || one.per_worker > claim.per_worker);
                }
            }
        }
    }
}
