"""The syntax tree of a chat template, rewritten so that each operation is paid for before it runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from edgespec.text.template_filters import COPY, READ, READ_MEMBERS, SPEND

_LOOK = "attr count d default first items last length list map reject rejectattr select selectattr"
"""filters that do not read the items of a value"""
_TESTS_OF_TYPE = (
    "boolean callable defined escaped even false filter float integer iterable mapping none number odd sameas sequence"
    " string test true undefined"
)


def _paid(name: str, value: nodes.Expr) -> nodes.Expr:
    if isinstance(value, (nodes.Const, nodes.TemplateData)):
        return value  # paid for with the body around it
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _price(body: Iterable[nodes.Node]) -> nodes.Expr:
    """An expression that pays for one run of a body, and is true."""
    steps, open_nodes = 5, list(body)
    while open_nodes:
        node = open_nodes.pop()
        text = getattr(node, "data" if isinstance(node, nodes.TemplateData) else "value", None)
        steps += 1 + (len(text) if isinstance(text, str) else 0)
        open_nodes.extend(node.iter_child_nodes())
    return nodes.Filter(nodes.Const(steps), SPEND, [], [], None, None, lineno=1)


_HAVE_A_BODY = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)
_DO_NOT_READ = {nodes.Filter: frozenset(_LOOK.split()), nodes.Test: frozenset(_TESTS_OF_TYPE.split())}


class Priced(NodeTransformer):
    """Adds the payments to a syntax tree."""

    def generic_visit(self, node: nodes.Node, *args: Any, **options: Any) -> nodes.Node:
        if not isinstance(node, _HAVE_A_BODY):
            super().generic_visit(node, *args, **options)
            self._pay_operands(node)
            return node
        price = _price(node.body)
        test_price = _price([node.test]) if isinstance(node, nodes.For) and node.test else None
        super().generic_visit(node, *args, **options)
        node.body.insert(0, nodes.ExprStmt(price, lineno=node.lineno))
        if isinstance(node, nodes.For) and node.test is not None and test_price is not None:
            node.test = nodes.And(test_price, node.test, lineno=node.lineno)
        return node

    def _pay_operands(self, node: nodes.Node) -> None:
        match node:
            case nodes.Filter() | nodes.Test():
                if node.node is not None and node.name not in _DO_NOT_READ[type(node)]:
                    node.node = _paid(READ, node.node)
                node.args = [_paid(READ, value) for value in node.args]
                for option in node.kwargs:
                    option.value = _paid(READ, option.value)
            case nodes.Compare():
                node.expr = _paid(READ, node.expr)
                for operand in node.ops:
                    name = READ_MEMBERS if operand.op in ("in", "notin") else READ
                    operand.expr = _paid(name, operand.expr)
            case nodes.Concat():
                node.nodes = [_paid(READ, value) for value in node.nodes]
            case nodes.List() | nodes.Tuple():
                if getattr(node, "ctx", "load") == "load":  # not the target of an assignment
                    node.items = [_paid(READ, value) for value in node.items]
            case nodes.Pair():
                node.key, node.value = _paid(READ, node.key), _paid(READ, node.value)
            case nodes.Getitem(arg=nodes.Slice()):
                node.node = _paid(COPY, node.node)
            case nodes.Getitem():
                node.arg = _paid(READ, node.arg)
