"""The cost of an ingest, estimated before it starts: requests, seconds and US dollars."""

from dataclasses import dataclass

from pipeline.ingestion.plan import IngestSettings, ShardPlan, plan_reads
from pipeline.ingestion.quality.duplicates import num_compared
from pipeline.ingestion.sorting.external_sort import take_rows
from pipeline.ingestion.sources import Index
from pipeline.storage import files


@dataclass(frozen=True)
class Prices:
    """Prices and times on which estimates are based."""

    # US dollars: S3 Standard and EC2 on demand in us-east-1, as published in 2025. Traffic within the region is free.
    per_1000_get: float = 0.0004
    per_1000_put_or_list: float = 0.005
    per_cpu_hour: float = 0.048
    per_gb_month: float = 0.023
    # Seconds of one CPU, measured on 2 cores of an AMD EPYC.
    seconds_per_image: float = 0.0002
    seconds_per_megabyte: float = 0.004
    decode_seconds_per_megabyte: float = 0.026
    seconds_per_pair: float = 1e-8  # of images compared, in the search for near duplicates
    start_seconds: float = 8.0  # of Ray


@dataclass(frozen=True)
class Estimate:
    """What an ingest would take."""

    rows: int
    shards: int
    source_bytes: int
    reads: int  # requests to the source, 0 if it isn't in object storage
    writes: int  # requests to the target, 0 if it isn't in object storage
    money: float  # US dollars
    money_per_month: float  # US dollars for storing the data set
    seconds: float


OTHER_WRITES = 6  # plan, lease, README.md, quarantine.parquet, quality.html, manifest.json


def estimate(
    index: Index,
    shards: list[ShardPlan],
    settings: IngestSettings,
    out: str,
    num_workers: int,
    prices: Prices | None = None,
) -> Estimate:
    """Returns what writing the planned shards on `num_workers` CPUs takes. Requests are counted, times estimated."""
    prices = prices or Prices()
    reads = writes = 0
    for shard in shards:
        samples = take_rows(index.splits[shard.split], shard.rows)
        reads += sum(files.in_store(read.object) for read in plan_reads(samples))
    if files.in_store(out):
        writes = 3 * len(shards) + OTHER_WRITES  # for each shard: itself, its provenance, its receipt
    num_bytes = sum(int(table["length"].to_numpy().sum()) for table in index.splits.values())
    megabytes = num_bytes / 1e6
    per_megabyte = prices.seconds_per_megabyte
    if settings.handling.checks == "decode" or settings.handling.reencodes:
        per_megabyte += prices.decode_seconds_per_megabyte
    cpu_seconds = index.num_rows * prices.seconds_per_image + megabytes * per_megabyte
    if settings.handling.checks == "decode":
        cpu_seconds += num_compared(index.num_rows) * prices.seconds_per_pair
    seconds = prices.start_seconds + cpu_seconds / num_workers
    money = (
        reads / 1000 * prices.per_1000_get
        + writes / 1000 * prices.per_1000_put_or_list
        + seconds * num_workers / 3600 * prices.per_cpu_hour
    )
    return Estimate(
        rows=index.num_rows,
        shards=len(shards),
        source_bytes=num_bytes,
        reads=reads,
        writes=writes,
        money=money,
        money_per_month=megabytes / 1000 * prices.per_gb_month if files.in_store(out) else 0.0,
        seconds=seconds,
    )
