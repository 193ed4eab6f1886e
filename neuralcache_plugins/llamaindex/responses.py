"""LlamaIndex responses as JSON and back: text, tokens, source nodes with their scores. No pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc

from neuralcache_plugins.semantic_cache import Sourced


def node_versions(nodes: Iterable[NodeWithScore | BaseNode]) -> list[tuple[str, str]]:
    """Return ids and content hashes as the cache binds answers to them: of nodes and of the documents they are from.

    Metadata that neither language nor embedding models read, such as a ranking's id, is no part of a node's content.

    For ``cache.invalidate(documents=node_versions(changed))``; or with ids alone, ``documents=[ref_doc_id]``.
    """
    found: dict[str, set[str]] = {}
    for each in nodes:
        node = each.node if isinstance(each, NodeWithScore) else each
        found.setdefault(node.node_id, set()).add(_read(node).hash)
        source = node.source_node
        if source is not None and source.node_id != node.node_id:
            found.setdefault(source.node_id, set()).add(source.hash or "")
    # nodes made from different versions of one document make a version of their own
    return [(name, "+".join(sorted(versions))) for name, versions in found.items()]


def _read(node: BaseNode) -> BaseNode:
    unread = {*node.excluded_llm_metadata_keys} & {*node.excluded_embed_metadata_keys} & {*node.metadata}
    if not unread:
        return node
    return node.model_copy(update={"metadata": {key: value for key, value in node.metadata.items()
                                                if key not in unread}})


def to_value(response: Response | StreamingResponse | AsyncStreamingResponse, text: str | None,
             tokens: list[str] | None = None) -> Sourced | None:
    """Return a response as JSON with what it came from; None if it would not come back equal."""
    nodes = [{"score": each.score, "node": _without_embedding(doc_to_json(each.node))}
             for each in response.source_nodes]
    value = {"text": text, "tokens": tokens, "metadata": response.metadata, "nodes": nodes}
    try:
        if json.loads(json.dumps(value, allow_nan=False)) != value:
            return None
    except (TypeError, ValueError):
        return None
    return Sourced(value, node_versions(response.source_nodes))


def nodes_of(value: dict[str, Any]) -> list[NodeWithScore]:
    """Return new source nodes."""
    return [NodeWithScore(node=json_to_doc(each["node"]), score=each["score"]) for each in value["nodes"]]


def _without_embedding(stored: dict[str, Any]) -> dict[str, Any]:
    return {name: {**data, "embedding": None} if isinstance(data, dict) and "embedding" in data else data
            for name, data in stored.items()}
