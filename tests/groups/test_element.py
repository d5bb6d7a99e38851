import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ser_lightning.groups import GroupElement, act, relative

SQUARE = (3, 3)
D4 = [(flip, turns) for flip in (False, True) for turns in range(4)]
elements = st.sampled_from(D4)


def element(flip, turns, grid=SQUARE):
    return GroupElement.from_turns(torch.tensor([flip]), torch.tensor([turns]), grid)


def key(element):
    return (bool(element.flip), int(element.quarter_turns), element.grid)


@settings(deadline=None, derandomize=True)
@given(elements, elements, elements)
def test_compose_is_associative(a, b, c):
    a, b, c = element(*a), element(*b), element(*c)
    assert key(a.compose(b).compose(c)) == key(a.compose(b.compose(c)))


@settings(deadline=None, derandomize=True)
@given(elements)
def test_identity_is_neutral(a):
    one = GroupElement.identity(1, SQUARE)
    assert key(element(*a).compose(one)) == key(element(*a)) == key(one.compose(element(*a)))


@settings(deadline=None, derandomize=True)
@given(elements)
def test_inverse_undoes_from_both_sides(a):
    a = element(*a)
    identity = (False, 0, SQUARE)
    assert key(a.compose(a.inverse(SQUARE))) == identity == key(a.inverse(SQUARE).compose(a))


def test_products_of_all_pairs_form_a_latin_square():
    for a in D4:
        assert len({key(element(*a).compose(element(*b))) for b in D4}) == 8
        assert len({key(element(*b).compose(element(*a))) for b in D4}) == 8


@settings(deadline=None, derandomize=True)
@given(elements, st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_inverse_of_a_resizing_element_leads_back_to_the_grid(a, grid):
    inverse = element(*a, grid=(4, 5)).inverse(grid)
    assert inverse.shape == grid


@settings(deadline=None, derandomize=True)
@given(elements, elements)
def test_compose_has_the_shape_of_the_second_element(a, b):
    product = element(*a, grid=(4, 5)).compose(element(*b, grid=(2, 7)))
    assert product.shape == element(*a, grid=(4, 5)).shape


@settings(deadline=None, derandomize=True)
@given(elements, elements)
def test_relative_carries_source_to_target(a, b):
    source, target = element(*a), element(*b)
    assert key(relative(source, target).compose(source)) == key(target)


def test_relative_over_all_pairs_reaches_all_eight():
    reached = {key(relative(element(*a), element(*b)))[:2] for a in D4 for b in D4}
    assert reached == set(D4)


def test_relative_has_the_shape_of_the_target():
    source, target = element(True, 1, (10, 17)), element(False, 3, (12, 14))
    assert relative(source, target).shape == (14, 12)


def test_relative_of_different_batch_sizes_raises():
    with pytest.raises(ValueError, match="source has 2 elements, target 3"):
        relative(GroupElement.identity(2, SQUARE), GroupElement.identity(3, SQUARE))


def test_from_turns_takes_turns_modulo_four():
    made = GroupElement.from_turns(torch.tensor([0, 1, 0]), torch.tensor([-1, 5, 3]), (2, 3))
    assert made.quarter_turns.tolist() == [3, 1, 3]
    assert made.flip.dtype == torch.bool
    assert made.shape == (3, 2)


def test_from_turns_of_mixed_parity_raises():
    with pytest.raises(ValueError, match="mix even and odd"):
        GroupElement.from_turns(torch.zeros(2), torch.tensor([0, 1]), SQUARE)


def test_identity_leaves_maps_alone():
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(act(GroupElement.identity(2, (4, 5)), maps), maps)


def test_to_keeps_type_and_values_and_element_pickles():
    made = element(True, 3).to("cpu")
    assert isinstance(made, GroupElement)
    assert key(pickle.loads(pickle.dumps(made))) == (True, 3, SQUARE)


@pytest.mark.parametrize("quarter_turn", [0, 1])
def test_shape_is_a_tuple_also_where_torch_has_pinned_the_grid_as_a_list(quarter_turn):
    element = GroupElement.identity(2, [4, 5])._replace(quarter_turn=quarter_turn)
    assert element.shape == ((5, 4) if quarter_turn else (4, 5))


def test_elements_turned_by_any_angle_have_no_inverse_and_no_product():
    still = GroupElement.identity(1, SQUARE)
    turned = still._replace(angle=torch.tensor([30.0]))
    for wrong in (
        lambda: turned.inverse(SQUARE),
        lambda: turned.compose(still),
        lambda: still.compose(turned),
        lambda: relative(still, turned),
    ):
        with pytest.raises(ValueError, match="turned by any angle have no exact action"):
            wrong()
