//! The page of a worker, or of an exporter that is nothing else, in Prometheus's text format. What it shows is asked of a database when the page is asked
//! for: each column of the row that a query gives is a metric of its name. Where a number is NULL, or the query gives no row, the answer is 500.
//!
//! Told by `PAGE_PORT`; `PAGE_QUERY`, in which `$1` (optional) is `HOSTNAME`, the pod's name; `RECORD_URL`; and `PAGE_TOKEN` (optional), the bearer token
//! without which the answer is 401.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_postgres::{Client, NoTls, Statement, types::ToSql};

use crate::record::variable;

struct Page {
    client: Client,
    query: Statement,
    worker: String,
    token: Option<String>,
}

/// Shows the page from now on, if there is to be one.
///
/// # Errors
/// When the port cannot be listened at, or the database cannot be asked.
pub(crate) async fn show() -> Result<bool> {
    let Ok(port) = std::env::var("PAGE_PORT") else { return Ok(false) };
    let (client, connection) =
        tokio_postgres::connect(&variable("RECORD_URL")?, NoTls).await.context("connecting to the database")?;
    // The client reports what happens to its connection.
    tokio::spawn(connection);
    let query = client.prepare(&variable("PAGE_QUERY")?).await.context("PAGE_QUERY")?;
    let token = std::env::var("PAGE_TOKEN").ok().map(|token| format!("Bearer {token}\r\n"));
    let page = Arc::new(Page { client, query, worker: variable("HOSTNAME")?, token });
    let listener = TcpListener::bind(("0.0.0.0", port.parse().context("PAGE_PORT")?)).await?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let page = Arc::clone(&page);
            // A client that has left needs no answer.
            tokio::spawn(async move { page.answer(stream).await.ok() });
        }
    });
    Ok(true)
}

impl Page {
    async fn answer(&self, mut stream: TcpStream) -> Result<()> {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let known = self.token.as_ref().is_none_or(|token| String::from_utf8_lossy(&request).contains(token));
        let (status, page) = match self.numbers().await {
            _ if !known => ("401 Unauthorized", "the token is not known\n".to_owned()),
            Ok(page) => ("200 OK", page),
            Err(error) => ("500 Internal Server Error", format!("the numbers are not known: {error:#}\n")),
        };
        let length = page.len();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        Ok(stream.write_all((head + &page).as_bytes()).await?)
    }

    async fn numbers(&self) -> Result<String> {
        let worker: [&(dyn ToSql + Sync); 1] = [&self.worker];
        let parameters = worker.get(..self.query.params().len()).context("PAGE_QUERY has more than one parameter")?;
        let row = self.client.query_one(&self.query, parameters).await?;
        let mut page = String::new();
        for (place, column) in row.columns().iter().enumerate() {
            let number: i64 = row.try_get(place)?;
            page += &format!("# TYPE {name} untyped\n{name} {number}\n", name = column.name());
        }
        Ok(page)
    }
}
