//! The flags of `mgsd eval` about endpoints.

use anyhow::{Context, bail};
use mgsd_eval::analysis::Prices;
use mgsd_eval::endpoint::{Address, ApiKey, ContentForm, Dialect, EndpointClient, EndpointOptions, Field, LengthField};
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Args)]
#[command(next_help_heading = "Endpoints")]
pub struct EndpointArgs {
    /// OpenAI-compatible endpoints to ask instead of a model folder, such as http://127.0.0.1:8000/v1; --model is then
    /// the model's name there. Several: load is spread over them, one that is down is left out until it is back.
    #[arg(long = "endpoint", value_name = "URL", num_args = 1..)]
    pub endpoints: Vec<String>,
    /// Environment variable with the API key.
    #[arg(long, value_name = "NAME", requires = "endpoints")]
    api_key_env: Option<String>,
    /// File with the API key.
    #[arg(long, value_name = "FILE", requires = "endpoints", conflicts_with = "api_key_env")]
    api_key_file: Option<PathBuf>,
    /// The API key itself; other users of this machine can see it in the list of processes.
    #[arg(long, value_name = "KEY", requires = "endpoints", conflicts_with_all = ["api_key_env", "api_key_file"])]
    api_key: Option<String>,
    /// Header for the key instead of `Authorization: Bearer`.
    #[arg(long, value_name = "HEADER", requires = "endpoints")]
    api_key_header: Option<String>,
    /// Questions under way at once, over all endpoints.
    #[arg(long, default_value_t = 8, value_parser = crate::commands::at_least_one)]
    concurrency: usize,
    /// Seconds that one answer may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    timeout: f64,
    /// Seconds that connecting may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    connect_timeout: f64,
    /// Attempts for a question before it is recorded as failed.
    #[arg(long, default_value_t = 6)]
    attempts: u32,
    /// End when no endpoint has answered for so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    outage: f64,
    /// Send at most so many requests, repeats included; --resume later asks the rest.
    #[arg(long, value_name = "N", requires = "endpoints")]
    max_requests: Option<u64>,
    /// What the length limit is called: max_tokens or max_completion_tokens.
    #[arg(long, default_value = "max_tokens", value_parser = ["max_tokens", "max_completion_tokens"])]
    length_field: String,
    /// Form of a message: parts where there is a picture (auto), always parts, or always a plain string.
    #[arg(long, default_value = "auto", value_parser = ["auto", "parts", "string"])]
    content: String,
    /// Do not send a seed.
    #[arg(long)]
    no_seed: bool,
    /// Do not send temperature and top_p (reasoning models refuse them).
    #[arg(long)]
    no_sampling: bool,
    /// `detail` of the pictures, such as low or high.
    #[arg(long, value_name = "DETAIL")]
    image_detail: Option<String>,
    /// Further fields of each request, as a JSON object.
    #[arg(long, value_name = "JSON")]
    extra_body: Option<String>,
    /// PEM file with the certificates to trust instead of the public ones.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Price of a million tokens of questions.
    #[arg(long, value_name = "PRICE", requires = "endpoints")]
    price_in: Option<f64>,
    /// Price of a million tokens of answers.
    #[arg(long, value_name = "PRICE", requires = "endpoints")]
    price_out: Option<f64>,
}

impl EndpointArgs {
    /// The client; nothing is sent yet.
    pub fn client(&self, model: &str) -> anyhow::Result<EndpointClient> {
        let endpoints = self.endpoints.iter().map(|text| Address::parse(text)).collect::<Result<Vec<_>, _>>()?;
        Ok(EndpointClient::new(EndpointOptions {
            key: self.key()?,
            key_header: self.api_key_header.clone(),
            dialect: self.dialect()?,
            concurrency: self.concurrency,
            timeout: seconds("--timeout", self.timeout)?,
            connect_timeout: seconds("--connect-timeout", self.connect_timeout)?,
            attempts: self.attempts,
            outage: seconds("--outage", self.outage)?,
            max_requests: self.max_requests,
            ca_file: self.ca_file.clone(),
            ..EndpointOptions::new(endpoints, model)
        })?)
    }

    fn key(&self) -> anyhow::Result<Option<ApiKey>> {
        Ok(match (&self.api_key, &self.api_key_env, &self.api_key_file) {
            (Some(key), ..) => Some(ApiKey::new(key, "--api-key")?),
            (_, Some(name), _) => Some(ApiKey::from_env(name)?),
            (.., Some(file)) => Some(ApiKey::from_file(file)?),
            _ => None,
        })
    }

    fn dialect(&self) -> anyhow::Result<Dialect> {
        let sent = |left_out: bool| if left_out { Field::LeftOut } else { Field::Sent };
        let extra = match &self.extra_body {
            None => serde_json::Map::new(),
            Some(text) => serde_json::from_str(text).with_context(|| {
                format!("--extra-body is {text:?}: expected a JSON object such as {{\"top_k\": 1}}")
            })?,
        };
        Ok(Dialect {
            length: if self.length_field == "max_tokens" {
                LengthField::MaxTokens
            } else {
                LengthField::MaxCompletionTokens
            },
            content: match self.content.as_str() {
                "parts" => ContentForm::Parts,
                "string" => ContentForm::Plain,
                _ => ContentForm::Auto,
            },
            seed: sent(self.no_seed),
            sampling: sent(self.no_sampling),
            image_detail: self.image_detail.clone(),
            extra,
        })
    }

    /// The prices, if one was given.
    pub fn prices(&self) -> anyhow::Result<Option<Prices>> {
        for (name, price) in [("--price-in", self.price_in), ("--price-out", self.price_out)] {
            if price.is_some_and(|price| !price.is_finite() || price < 0.0) {
                bail!("{name} is {}: expected the price of a million tokens, 0 or more", price.unwrap_or_default());
            }
        }
        let given = self.price_in.is_some() || self.price_out.is_some();
        Ok(given.then(|| Prices { prompt: self.price_in.unwrap_or(0.0), answer: self.price_out.unwrap_or(0.0) }))
    }
}

fn seconds(name: &str, value: f64) -> anyhow::Result<Duration> {
    match Duration::try_from_secs_f64(value) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => bail!("{name} is {value}: expected a number of seconds above 0"),
    }
}
