//! Commands, the event store and idempotency keys.

use anyhow::Result;
use futures::future::join_all;
use serde_json::json;
use shop::{
    catalogue::{AddProduct, Catalogue},
    checkout::{self, ExecuteError},
    command_bus::{CommandBus, CommandError, Decision},
    event_store::{self, NewEvent, StoreError},
    idempotency_key::{self, KeyError},
};

use crate::write_side::{WriteSide, order};

fn event(type_: &str) -> NewEvent {
    NewEvent { type_: type_.to_owned(), data: json!({}) }
}

#[tokio::test]
async fn an_unknown_command_and_a_bad_request_are_refused_with_what_is_wrong() -> Result<()> {
    let mut shop = WriteSide::open().await?;
    let unknown = shop.execute("k1", "PlaceOrders", &json!({})).await.unwrap_err();
    assert_eq!(unknown.to_string(), "there is no command PlaceOrders");
    let cases = [
        (order("7", "book", 0, "Portugal"), "PlaceOrder: quantity must be 1 to 1000000"),
        (order("7/8", "book", 1, "Portugal"), "PlaceOrder: id must be 1 to 64 letters, digits and hyphens"),
        (json!({"id": "7"}), "PlaceOrder: missing field `customer`"),
    ];
    for (body, expected) in cases {
        assert_eq!(shop.execute("k2", "PlaceOrder", &body).await.unwrap_err().to_string(), expected);
    }
    // What was never decided leaves its key free.
    assert_eq!(shop.number("select count(*) from idempotency_keys").await?, 0);
    assert_eq!(shop.number("select count(*) from events").await?, 0);
    Ok(())
}

#[test]
fn a_command_has_one_handler() {
    let bus = CommandBus::default().with::<AddProduct, _>(Catalogue).unwrap();
    let second = bus.with::<AddProduct, _>(Catalogue).err().unwrap();
    assert_eq!(second.to_string(), "the command AddProduct has a handler already");
}

#[tokio::test]
async fn an_append_is_refused_at_another_version_than_expected() -> Result<()> {
    let mut shop = WriteSide::open().await?;
    for (expected, events, is_appended) in
        [(1, 1, false), (0, 2, true), (0, 1, false), (1, 1, false), (3, 1, false), (2, 1, true)]
    {
        let transaction = shop.client.transaction().await?;
        let events = vec![event("Happened"); events];
        match event_store::append(&transaction, "a", expected, &events).await {
            Ok(appended) => {
                transaction.commit().await?;
                assert!(is_appended, "{expected}: {appended:?}");
            }
            Err(StoreError::Conflict { .. }) => assert!(!is_appended, "{expected}"),
            Err(error) => panic!("{expected}: {error}"),
        }
    }
    let stream = event_store::read(&shop.client, "a").await?;
    let versions: Vec<i64> = stream.events.iter().map(|event| event.version).collect();
    assert_eq!((stream.version, versions), (3, vec![1, 2, 3]));
    Ok(())
}

#[tokio::test]
async fn of_two_writers_that_saw_the_same_one_wins_and_the_other_decides_again() -> Result<()> {
    let mut shop = WriteSide::open().await?;
    let mut other = shop.database.connect().await?;
    let first = shop.client.transaction().await?;
    event_store::append(&first, "a", 0, &[event("First")]).await?;
    let second = async {
        let transaction = other.transaction().await?;
        let appended = event_store::append(&transaction, "a", 0, &[event("Second")]).await;
        anyhow::Ok(appended)
    };
    // The second one is held up until the first is committed.
    let (committed, appended) = tokio::join!(first.commit(), second);
    committed?;
    assert!(matches!(appended?, Err(StoreError::Conflict { .. })));

    // Twenty orders at once of a product with a price that changes meanwhile: all are decided, none is lost.
    shop.product("book", 1_000).await?;
    let (bus, database) = (&shop.bus, &shop.database);
    let orders = (0..20).map(|number| async move {
        let mut client = database.connect().await?;
        let (id, key) = (number.to_string(), format!("place-{number}"));
        let body = order(&id, "book", 1, "Portugal");
        let placed = checkout::execute(bus, &mut client, &key, "PlaceOrder", &body).await?;
        let price = json!({"sku": "book", "price_cents": 1_000 + number});
        let priced = checkout::execute(bus, &mut client, &format!("price-{number}"), "ChangePrice", &price).await;
        // So many at once may be refused for good: then nothing has changed.
        match priced {
            Err(ExecuteError::Command(CommandError::Store(StoreError::Conflict { .. }))) => {}
            priced => assert!(matches!(priced?, Decision::Accepted { .. })),
        }
        anyhow::Ok(placed)
    });
    for placed in join_all(orders).await {
        assert!(matches!(placed?, Decision::Accepted { .. }));
    }
    assert_eq!(shop.number("select count(*) from events where type = 'OrderPlaced'").await?, 20);
    assert_eq!(shop.number("select count(*) from sagas").await?, 20);
    Ok(())
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer_and_does_nothing() -> Result<()> {
    let mut shop = WriteSide::open().await?;
    shop.product("book", 10).await?;
    let first = shop.order("7", "book", 1, "Portugal").await?;
    assert!(matches!(first, Decision::Accepted { position } if position > 0));
    assert_eq!(shop.order("7", "book", 1, "Portugal").await?, first);
    // Under another key it is another request.
    let again = shop.execute("k", "PlaceOrder", &order("7", "book", 1, "Portugal")).await?;
    assert_eq!(again, Decision::refused("the order 7 was placed already"));
    // A refusal is an answer, too, and stays when what it was about has changed.
    let refused = shop.order("8", "pen", 1, "Portugal").await?;
    assert_eq!(refused, Decision::refused("there is no product pen"));
    shop.product("pen", 10).await?;
    assert_eq!(shop.order("8", "pen", 1, "Portugal").await?, refused);
    // The key of one request is no key of another.
    let other = shop.order("7", "book", 2, "Portugal").await.unwrap_err();
    assert!(matches!(other.downcast_ref(), Some(ExecuteError::Key(KeyError::OtherRequest))), "{other}");
    assert_eq!(shop.number("select count(*) from events where type = 'OrderPlaced'").await?, 1);
    Ok(())
}

#[tokio::test]
async fn of_requests_with_one_key_at_the_same_time_one_is_done_and_all_get_its_answer() -> Result<()> {
    let mut shop = WriteSide::open().await?;
    shop.product("book", 10).await?;
    let (bus, database) = (&shop.bus, &shop.database);
    let body = order("7", "book", 1, "Portugal");
    let requests = (0..10).map(|_| async {
        let mut client = database.connect().await?;
        anyhow::Ok(checkout::execute(bus, &mut client, "key", "PlaceOrder", &body).await?)
    });
    let answers = join_all(requests).await.into_iter().collect::<Result<Vec<_>>>()?;
    assert!(matches!(answers[0], Decision::Accepted { .. }), "{:?}", answers[0]);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(shop.number("select count(*) from events where type = 'OrderPlaced'").await?, 1);
    Ok(())
}

#[tokio::test]
async fn old_keys_are_forgotten_and_young_ones_are_not() -> Result<()> {
    let shop = WriteSide::open().await?;
    let keys = "insert into idempotency_keys (key, request, answer, made_at)
        select 'k' || n, '{}', '{}', now() - n * interval '1 hour' from generate_series(1, 2500) n";
    shop.client.execute(keys, &[]).await?;
    let pruned = idempotency_key::prune(&shop.client, std::time::Duration::from_secs(100 * 3_600 + 1_800)).await?;
    assert_eq!((pruned, shop.number("select count(*) from idempotency_keys").await?), (2_400, 100));
    Ok(())
}
